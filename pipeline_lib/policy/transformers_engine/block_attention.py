"""Attention over the blocks of the key-value cache, in place of transformers' own.

One idea: a row multiplies block by block in the same shape whichever rows stand beside it and however long the longest
of them is. That is what makes the engine batch-invariant on a CPU.

transformers offers this hook: a registered attention function, which gets every keyword argument of the model's call
(its own continuous batching passes a cache that way).

Letters beside those of `block_access`: Hq query heads, G = Hq / Hkv of them share a key-value head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface

from pipeline_lib.config import ConfigError
from pipeline_lib.policy.transformers_engine.block_access import BlockAccess, BlockRead
from pipeline_lib.policy.transformers_engine.prompt_attention import attend_stretches

ATTENTION_NAME = "coppice-blocks"
_UNSUPPORTED = ("s_aux", "position_bias")  # would change the result if they were ignored


class ScoreShape(NamedTuple):
    """What a layer makes of the products of queries and keys before it takes their softmax.

    Args:
        scaling: they are multiplied by it.
        window: a row sees so many positions at most, its own the last; None for all.
        softcap: c of ``c * tanh(scores / c)``; None for none.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None


def block_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    block_access: BlockAccess | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in place of its own attention.

    Shapes: query `[1, Hq, T, D]`, key and value `[1, Hkv, T, D]`, result `[1, T, Hq, D]`.

    Raises:
        ConfigError: the architecture asks for something that is not computed here.
    """
    extra = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if block_access is None or extra:
        why = f"its attention uses {extra[0]}" if extra else "it hands no keyword arguments to its attention"
        raise ConfigError(
            f"policy.model: {type(module).__name__} cannot be sampled by policy.backend=transformers: {why}"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    by_row = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    layer: Any = module.layer_idx
    shape = ScoreShape(scale, sliding_window, softcap)
    output = attend(block_access, layer, by_row[0], by_row[1], by_row[2], shape)
    return output[None], None


AttentionInterface.register(ATTENTION_NAME, block_attention)


def attend(access: BlockAccess, layer: int, query: Tensor, key: Tensor, value: Tensor, shape: ScoreShape) -> Tensor:
    """Stores each row's key and value, then attends: ``softmax(cap(q k^T * scaling) + mask) v``.

    Shapes: query `[T, Hq, D]`, key and value `[T, Hkv, D]`, result `[T, Hq, D]`.
    """
    num_heads, num_prefill = key.shape[1], access.num_prefill
    keys, values = access.cache.write(layer, key, value, places=access.places(num_heads), num_blocks=access.num_blocks)
    by_row_head = (query * shape.scaling).reshape(len(query) * num_heads, -1, query.shape[-1])
    mask = access.mask(shape.window, query.dtype)
    prefill_reads, decode_reads = access.reads(num_heads)
    cut = num_prefill * num_heads
    parts = []
    if prefill_reads and access.cache.on_cpu:
        by_row = by_row_head[:cut].view(num_prefill, num_heads, *by_row_head.shape[1:])
        parts.append(attend_stretches(by_row, keys, values, mask[:num_prefill], access.stretches(), shape.softcap))
    elif prefill_reads:
        parts.append(attend_blocks(by_row_head[:cut], keys, values, mask[:num_prefill], prefill_reads, shape.softcap))
    if decode_reads:
        parts.append(attend_blocks(by_row_head[cut:], keys, values, mask[num_prefill:], decode_reads, shape.softcap))
    return torch.cat(parts).reshape(query.shape)


def attend_blocks(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    reads: Sequence[BlockRead],
    softcap: float | None = None,
) -> Tensor:
    """Attention of R rows to the blocks that they read: ``softmax(cap(q k^T) + mask) v``, summed block by block.

    Args:
        query: `[R * Hkv, G, D]`, scaled.
        keys: `[blocks, rows, Hkv, BLOCK, D]`.
        values: `[blocks, rows, Hkv, BLOCK, D]`.
        mask: `[R, 1, 1, L]`; minus infinity wherever a row sees nothing, blocks that it does not read included.
        reads: of each block up to the last one that a row sees; all rows read the first one.
        softcap: see `ScoreShape`.
    """
    num_row_heads, size = len(query), keys.shape[3]
    scores = torch.cat(
        [_block_scores(query, _stored(keys[b], read, num_row_heads), read) for b, read in enumerate(reads)], dim=-1
    )
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    by_row = scores.view(len(mask), -1, *scores.shape[1:])
    by_row.add_(mask[..., : scores.shape[-1]])
    probs = torch.softmax(by_row, dim=-1, dtype=torch.float32).to(query.dtype).view(scores.shape)
    output = torch.bmm(probs[..., :size], _stored(values[0], reads[0], num_row_heads))
    for b, read in enumerate(reads[1:], start=1):
        block = _stored(values[b], read, num_row_heads)
        output = _add_block(output, probs[..., b * size : (b + 1) * size], block, read)
    return output


def _stored(block: Tensor, read: BlockRead, num_row_heads: int) -> Tensor:
    """`[N, BLOCK, D]`: what the readers of a block `[rows, Hkv, BLOCK, D]` read there, in their order."""
    by_row_head = block.flatten(0, 1)
    return by_row_head[:num_row_heads] if read.sources is None else by_row_head.index_select(0, read.sources)


def _block_scores(query: Tensor, keys: Tensor, read: BlockRead) -> Tensor:
    """`[R * Hkv, G, BLOCK]` ``q k^T``; 0 for whoever does not read the block, where the mask hides it."""
    if read.readers is None:
        return torch.bmm(query, keys.transpose(1, 2))
    some = torch.bmm(query.index_select(0, read.readers), keys.transpose(1, 2))
    return query.new_zeros(*query.shape[:2], keys.shape[1]).index_copy_(0, read.readers, some)


def _add_block(output: Tensor, probs: Tensor, values: Tensor, read: BlockRead) -> Tensor:
    """`output` `[R * Hkv, G, D]` with ``probs v`` added for whoever reads the block."""
    if read.readers is None:
        return torch.baddbmm(output, probs, values)
    before = output.index_select(0, read.readers)
    some = torch.baddbmm(before, probs.index_select(0, read.readers), values)
    return output.index_copy_(0, read.readers, some)
