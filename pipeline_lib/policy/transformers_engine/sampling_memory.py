"""How much memory sampling with the transformers backend will take, known before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline_lib.config import PolicyConfig
from pipeline_lib.policy.devices import resolve_device
from pipeline_lib.policy.transformers_engine.kv_cache import CPU_BLOCK, CUDA_BLOCK, ROW_MULTIPLE, round_up
from pipeline_lib.policy.transformers_engine.slots import MIN_RETAINED

LOGIT_BYTES = 24  # of one logit while tokens are drawn: float32 three times, its cumulative sum in float64, one mask


@dataclass(frozen=True, slots=True)
class SamplingMemory:
    """Bytes on the device that samples; the libraries themselves come on top.

    Args:
        weights: of the model, the adapter merged in.
        cache: keys and values of all rows at full length.
        logits: of one pass.
    """

    weights: int
    cache: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.logits


def sampling_memory(
    model_dir: Path | str, policy: PolicyConfig, *, context_tokens: int | None = None
) -> SamplingMemory:
    """Memory of a full engine whose every row is `context_tokens` long.

    Args:
        model_dir: model folder or hub name; only its configuration is read.
        policy: rows, context, dtype, device, revision.
        context_tokens: longest row; None takes ``policy.max_context_tokens``.
    """
    revision = None if Path(model_dir).is_dir() else policy.revision
    trusted = policy.trust_remote_code
    layout = AutoConfig.from_pretrained(model_dir, revision=revision, trust_remote_code=trusted)
    with torch.device("meta"):
        dtype = getattr(torch, policy.dtype)
        model = AutoModelForCausalLM.from_config(layout, dtype=dtype, trust_remote_code=trusted)
    item = torch.finfo(model.dtype).bits // 8
    text: Any = layout.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    block = CPU_BLOCK if resolve_device(policy.device).type == "cpu" else CUDA_BLOCK
    slots = round_up(policy.max_batch, ROW_MULTIPLE)
    rows = slots + max(policy.max_batch, MIN_RETAINED) + 1  # running, retained, padding: see `slots`
    length = round_up(min(context_tokens or policy.max_context_tokens, policy.max_context_tokens), block)
    return SamplingMemory(
        weights=sum(parameter.nbytes for parameter in model.parameters()),
        cache=2 * text.num_hidden_layers * heads * size * rows * length * item,
        logits=LOGIT_BYTES * slots * text.vocab_size,
    )
