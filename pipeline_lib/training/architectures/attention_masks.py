"""Which tokens of packed trees each kind of layer sees, as the masks that a model of transformers takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline_lib.training.architectures.layers import ALL_LAYERS, windows_by_kind
from pipeline_lib.training.architectures.tree_attention import TreeBlocks
from pipeline_lib.training.batches.batching import PackedBatch

Masks = Tensor | dict[str, Tensor]


class Visible(NamedTuple):
    """What a batch's tokens see: masks, and the blocks that they are for where attention goes by blocks."""

    masks: Masks
    blocks: TreeBlocks | None = None


def tree_masks(
    batch: PackedBatch, layout: Any, device: torch.device, dtype: torch.dtype, blocks: TreeBlocks | None = None
) -> Masks:
    """Additive masks, 0 where token i may see token j; by kind of layer where a model has several.

    ``j <= i < subtree_ends[j]``: j is i or one of its ancestors. With a sliding window of W tokens also
    ``positions[i] - positions[j] < W``: positions are depths, so the window is exact on every path.

    Args:
        batch: its trees.
        layout: configuration of the language model.
        device: where the masks are needed.
        dtype: of the masks.
        blocks: which queries and keys masks are for.

    Returns:
        `[N, 1, Q, K]` each, or without blocks `[B, 1, T, T]`.
    """
    ends = torch.from_numpy(batch.subtree_ends).to(device)
    positions = torch.from_numpy(batch.positions).to(device)
    num_rows, length = ends.shape
    if blocks is None:
        tokens = torch.arange(num_rows * length, device=device).view(num_rows, length)
        queries, keys = tokens[:, :, None], tokens[:, None, :]
    else:
        queries, keys = blocks.queries[:, :, None], blocks.keys[:, None, :]
    not_on_path = (keys > queries) | (queries % length >= ends.flatten()[keys])
    if blocks is not None:
        places = torch.arange(keys.shape[2], device=device)
        not_on_path |= places >= blocks.num_keys[:, None, None]
    longest = int(batch.positions.max()) + 1
    windows = {k: size if size is not None and size < longest else None for k, size in windows_by_kind(layout).items()}

    def masked(window: int | None) -> Tensor:
        hidden = not_on_path
        if window is not None:
            depths = positions.flatten()
            hidden = hidden | (depths[queries] - depths[keys] >= window)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]

    by_window = {window: masked(window) for window in set(windows.values())}
    masks = {kind: by_window[window] for kind, window in windows.items()}
    return masks.get(ALL_LAYERS, masks)
