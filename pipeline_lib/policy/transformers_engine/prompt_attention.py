"""Attention of a prompt's tokens on a CPU: those of one sequence read its blocks where they lie.

One idea: the rows that prefill one sequence multiply with the same block, as one matrix that is repeated without being
copied. Every row still multiplies in the shape of `block_attention`, so it comes to the same bits; copying the blocks
for each row took a fifth of the time behind a prompt of 200 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline_lib.policy.transformers_engine.block_access import Stretch


def attend_stretches(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, stretches: Sequence[Stretch], softcap: float | None
) -> Tensor:
    """`[R * Hkv, G, D]`: what `block_attention.attend_blocks` gives for the rows that prefill.

    Args:
        query: `[R, Hkv, G, D]`, scaled.
        keys: `[blocks, rows, Hkv, BLOCK, D]`.
        values: `[blocks, rows, Hkv, BLOCK, D]`.
        mask: `[R, 1, 1, L]`; minus infinity wherever a row sees nothing.
        stretches: of all R rows.
        softcap: see `block_attention.ScoreShape`.
    """
    size, num_blocks = keys.shape[3], max(len(stretch.readers) for stretch in stretches)
    scores = query.new_zeros(*query.shape[:3], num_blocks * size)
    for block, source, head, rows in _products(stretches, query.shape[1]):
        columns = slice(block * size, (block + 1) * size)
        repeated = keys[block, source, head].t().expand(rows.stop - rows.start, -1, -1)
        scores[rows, head, :, columns] = torch.bmm(query[rows, head], repeated)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores.add_(mask[..., : scores.shape[-1]])
    probs = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.empty_like(query)
    for block, source, head, rows in _products(stretches, query.shape[1]):
        share = probs[rows, head, :, block * size : (block + 1) * size]
        repeated = values[block, source, head].expand(rows.stop - rows.start, -1, -1)
        before = output[rows, head]
        output[rows, head] = torch.baddbmm(before, share, repeated) if block else torch.bmm(share, repeated)
    return output.flatten(0, 1)


def _products(stretches: Sequence[Stretch], num_heads: int) -> Iterator[tuple[int, int, int, slice]]:
    """(block, storage row, head, rows that see the block), block by block for each stretch."""
    for stretch in stretches:
        for block, first in enumerate(stretch.readers):
            for head in range(num_heads):
                yield block, stretch.source, head, slice(first, stretch.stop)
