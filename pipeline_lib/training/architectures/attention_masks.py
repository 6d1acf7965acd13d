"""Which tokens of packed trees each kind of layer sees, as the masks that a model of transformers takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline_lib.training.architectures.layers import ALL_LAYERS, windows_by_kind
from pipeline_lib.training.batches.batching import PackedBatch

Masks = Tensor | dict[str, Tensor]


def tree_masks(batch: PackedBatch, layout: Any, device: torch.device, dtype: torch.dtype) -> Masks:
    """Additive masks `[B, 1, T, T]`: 0 where token i may see token j; by kind of layer where a model has several.

    ``j <= i < subtree_ends[j]``: j is i or one of its ancestors. With a sliding window of W tokens also
    ``positions[i] - positions[j] < W``: positions are depths, so the window is exact on every path.

    Args:
        batch: its trees.
        layout: configuration of the language model.
        device: where the masks are needed.
        dtype: of the masks.
    """
    ends = torch.from_numpy(batch.subtree_ends).to(device)
    positions = torch.from_numpy(batch.positions).to(device)
    columns = torch.arange(ends.shape[1], device=device)
    not_on_path = (columns[None, :] > columns[:, None]) | (columns[:, None] >= ends[:, None, :])
    longest = int(batch.positions.max()) + 1
    windows = {k: size if size is not None and size < longest else None for k, size in windows_by_kind(layout).items()}

    def masked(window: int | None) -> Tensor:
        hidden = not_on_path
        if window is not None:
            hidden = hidden | (positions[:, :, None] - positions[:, None, :] >= window)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]

    by_window = {window: masked(window) for window in set(windows.values())}
    masks = {kind: by_window[window] for kind, window in windows.items()}
    return masks.get(ALL_LAYERS, masks)
