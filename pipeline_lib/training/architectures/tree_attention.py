"""Attention over rows of packed trees, a block of queries at a time, each block with the few keys that it sees.

One idea: nodes lie depth first, so a stretch of a row sees itself and the ancestors of its first token: a path, however
many trees the row holds. Attention over whole rows computes all the pairs that masks then hide, which for short trees
behind one long beginning is two thirds of them, and half of a training's time on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCKED = "tree_blocks"  # what transformers calls it here
BLOCK_SIZES = (32, 64, 128, 256)
TOKENS_PER_KEY = 64  # to fetch a key and its value for a block takes as long as comparing it with so many queries
KEY_MULTIPLE = 8
MAX_PRODUCTS = 1 << 26  # of queries and keys, over all heads, that are held at once: 256 MiB in float32, a few times


@dataclass(frozen=True, slots=True)
class TreeBlocks:
    """Which queries and keys of a batch belong together; tokens are counted through its rows, ``row * T + column``.

    Shapes: N blocks of Q queries and K keys; B rows of T tokens.

    Args:
        queries: `[N, Q]` int64, tokens that follow one another; the last one again where a row ends within the block.
        keys: `[N, K]` int64, tokens that any of them may see, ascending; the first one again behind the last.
        num_keys: `[N]` int64, keys of each block but those repeated.
        places: `[B * T]` int64, where in the flattened `queries` each token is.
    """

    queries: Tensor
    keys: Tensor
    num_keys: Tensor
    places: Tensor


def cut_into_blocks(
    subtree_ends: NDArray[np.int64], device: torch.device, sizes: Sequence[int] | None = None
) -> TreeBlocks | None:
    """Cuts rows into blocks of the size that takes the fewest operations; None where whole rows take no more.

    With `sizes` into blocks of one of these, whatever it takes.

    ``cost = N * K * (Q + TOKENS_PER_KEY)``.

    Source: our choice.

    Args:
        subtree_ends: `[B, T]`, see `PackedBatch`.
        device: where the blocks are needed.
        sizes: tried, in tokens; None tries `BLOCK_SIZES`.

    Example: 1,336 tokens, 300 of them the beginning of 16 trees, become 11 blocks of 128 queries and up to 448 keys: a
    third of the pairs.
    """
    num_rows, length = subtree_ends.shape
    tried = [min(size, length) for size in sizes or BLOCK_SIZES]
    plans = [_blocks(subtree_ends, size) for size in tried]
    widths = [max(len(keys) for _, keys in blocks) for blocks in plans]
    costs = [
        len(plan) * width * (size + TOKENS_PER_KEY) for plan, width, size in zip(plans, widths, tried, strict=True)
    ]
    best = int(np.argmin(costs))
    if sizes is None and costs[best] >= num_rows * length * (length + TOKENS_PER_KEY):
        return None
    blocks, size, width = plans[best], tried[best], -(-widths[best] // KEY_MULTIPLE) * KEY_MULTIPLE
    queries = np.stack([np.pad(queries, (0, size - len(queries)), mode="edge") for queries, _ in blocks])
    keys = np.stack([np.pad(keys, (0, width - len(keys)), constant_values=keys[0]) for _, keys in blocks])
    tokens = np.arange(num_rows * length)
    row, column = tokens // length, tokens % length
    places = row * (len(blocks) // num_rows * size) + column
    num_keys = np.array([len(keys) for _, keys in blocks])
    return TreeBlocks(*(torch.from_numpy(part).to(device) for part in (queries, keys, num_keys, places)))


def _blocks(subtree_ends: NDArray[np.int64], size: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Queries and keys of each block of at most `size` tokens, row after row."""
    blocks = []
    for row, ends in enumerate(subtree_ends):
        first = row * len(ends)
        for start in range(0, len(ends), size):
            queries = np.arange(start, min(start + size, len(ends)))
            ancestors = np.flatnonzero(ends[:start] > start)
            blocks.append((first + queries, first + np.concatenate([ancestors, queries])))
    return blocks


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float | None = None,
    tree_blocks: TreeBlocks | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as the models of transformers call it.

    Shapes: B rows, T tokens, A heads, G heads of keys, D numbers; N blocks of Q queries and K keys.

    Args:
        module: the layer, which is not read.
        query: `[B, A, T, D]`.
        key: `[B, G, T, D]`.
        value: `[B, G, T, D']`.
        attention_mask: `[N, 1, Q, K]`, additive.
        scaling: what products are multiplied by; None is ``D ** -0.5``.
        tree_blocks: see there; None is attention over whole rows.
        others: of those alone.

    Returns:
        `[B, T, A, D']`, and None where others have the probabilities.
    """
    if tree_blocks is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return whole
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    inputs = (query, key, value, attention_mask, tree_blocks)
    if not torch.is_grad_enabled():
        return _attended(*inputs), None
    # Probabilities are computed again in the backward pass: kept, those of all layers would be most of the memory.
    return checkpoint(_attended, *inputs, use_reentrant=False, preserve_rng_state=False), None


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, blocks: TreeBlocks) -> Tensor:
    """See `tree_attention`; the queries are multiplied by the scaling already."""
    num_rows, num_heads, length, _ = query.shape
    repeats = num_heads // key.shape[1]  # heads that share their keys compare with them in one product
    # In float32, so that what a key's blocks add to its gradient is not rounded at every sum.
    keys, values = (_fetched(each.float(), blocks.keys).to(query.dtype) for each in (key, value))
    queries = _fetched(query, blocks.queries)
    if mask.numel() * num_heads > MAX_PRODUCTS:
        keys, values = (each.repeat_interleave(repeats, dim=1) for each in (keys, values))
        found = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=1.0)
    else:  # two to three times as fast
        queries = queries.unflatten(1, (-1, repeats)).flatten(2, 3)  # [N, G, repeats * Q, D]
        products = (queries @ keys.transpose(2, 3)).unflatten(2, (repeats, -1))
        shares = (products + mask[:, None]).softmax(-1).flatten(2, 3)  # a softmax sums in float32 itself
        found = (shares @ values).unflatten(2, (repeats, -1)).flatten(1, 2)  # [N, A, Q, D']
    tokens = embedding(blocks.places, found.transpose(1, 2).flatten(0, 1).flatten(1))
    return tokens.view(num_rows, length, num_heads, -1)


def _fetched(states: Tensor, tokens: Tensor) -> Tensor:
    """`[B, A, T, D]` and `[N, K]` give `[N, A, K, D]`: the states of these tokens.

    By `embedding`, since it adds the gradients of a token up many times as fast as ``index_select`` does.
    """
    num_heads = states.shape[1]
    rows = states.transpose(1, 2).flatten(0, 1).flatten(1)
    found: Tensor = embedding(tokens, rows).unflatten(2, (num_heads, -1))
    return found.transpose(1, 2)


AttentionInterface.register(BLOCKED, tree_attention)
AttentionMaskInterface.register(BLOCKED, sdpa_mask)  # for who calls the model with a mask of padding, as TRL does
