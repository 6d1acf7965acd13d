"""From hidden states to logits, with what some models do to logits after their last matrix."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class ScaledOutputLayer(nn.Module):
    """An output layer whose logits are scaled, or capped softly: ``cap * tanh(scale * logits / cap)``.

    Args:
        linear: hidden states to logits.
        scale: 1 leaves them as they are.
        softcap: bound of their magnitude; None for none.
    """

    def __init__(self, linear: nn.Module, *, scale: float = 1.0, softcap: float | None = None) -> None:
        super().__init__()
        self.linear, self.scale, self.softcap = linear, scale, softcap

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, self.linear.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[M, V]` logits of `[M, H]` hidden states."""
        logits: Tensor = self.linear(hidden) * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def output_layer(model: Any) -> nn.Module:
    """The output layer of a causal language model; its own where logits are just what that gives.

    Cohere multiplies by ``logit_scale``, Granite divides by ``logits_scaling``, Gemma has ``final_logit_softcapping``.
    """
    layout = model.config.get_text_config()
    scale = getattr(layout, "logit_scale", None) or 1 / (getattr(layout, "logits_scaling", None) or 1)
    softcap = getattr(layout, "final_logit_softcapping", None)
    linear = cast(nn.Module, model.get_output_embeddings())
    return linear if scale == 1 and softcap is None else ScaledOutputLayer(linear, scale=scale, softcap=softcap)
