"""Trees with one beginning as one tree: worked examples before every question are computed once a forward pass.

One idea: to attention a shared beginning is an ancestor like any other. Trees that start alike are branches of one
larger tree, whose trunk is what they share; a token still sees its own ancestors only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline_lib.training.batches.packing import PackedTree

MIN_SHARED = 64  # tokens: below that a few are saved, at the price of longer rows


def share_beginnings(trees: Sequence[PackedTree]) -> list[PackedTree]:
    """The trees of one forward pass, those that begin alike as one, at the place of the first of them.

    Losses and gradients stay what they were, up to the order of sums.
    """
    left, shared = list(trees), []
    while left:
        common = [_num_common(left[0], tree) for tree in left]
        alike = [index for index, count in enumerate(common) if count >= MIN_SHARED]
        if len(alike) > 1:
            shared.append(graft([left[index] for index in alike], min(common[index] for index in alike)))
        else:
            alike = [0]
            shared.append(left[0])
        left = [tree for index, tree in enumerate(left) if index not in alike]
    return shared


def graft(trees: Sequence[PackedTree], num_shared: int) -> PackedTree:
    """Trees whose first `num_shared` tokens are equal and seen by all others, as branches of one tree.

    Args:
        trees: at least one.
        num_shared: length of the trunk, in tokens.
    """
    lengths = [tree.num_tokens - num_shared for tree in trees]
    offsets = np.cumsum([0, *lengths[:-1]])  # by how much each tree's own tokens move
    num_tokens = num_shared + sum(lengths)
    trunk, pairs = trees[0], np.cumsum([0, *(tree.num_pairs for tree in trees)])
    return PackedTree(
        token_ids=np.concatenate([trunk.token_ids[:num_shared], *(tree.token_ids[num_shared:] for tree in trees)]),
        positions=np.concatenate([trunk.positions[:num_shared], *(tree.positions[num_shared:] for tree in trees)]),
        subtree_ends=np.concatenate(
            [
                np.full(num_shared, num_tokens),
                *(tree.subtree_ends[num_shared:] + offset for tree, offset in zip(trees, offsets, strict=True)),
            ]
        ).astype(np.int32),
        sources=np.concatenate(
            [
                np.where(tree.sources < num_shared, tree.sources, tree.sources + offset)
                for tree, offset in zip(trees, offsets, strict=True)
            ]
        ).astype(np.int32),
        targets=np.concatenate([tree.targets for tree in trees]),
        weights=np.concatenate([tree.weights for tree in trees]),
        segments=np.concatenate(
            [tree.segments + 2 * before for tree, before in zip(trees, pairs[:-1], strict=True)]
        ).astype(np.int32),
        num_pairs=int(pairs[-1]),
        num_unique_tokens=sum(min(tree.num_unique_tokens, tree.num_tokens - num_shared) for tree in trees) + num_shared,
    )


def _num_common(one: PackedTree, other: PackedTree) -> int:
    """Tokens with which both begin and that all their other tokens see."""
    return min(_num_seen_by_all(one), _num_seen_by_all(other), num_alike(one.token_ids, other.token_ids))


def _num_seen_by_all(tree: PackedTree) -> int:
    ends_early = np.flatnonzero(tree.subtree_ends < tree.num_tokens)
    return int(ends_early[0]) if len(ends_early) else tree.num_tokens


def num_alike(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens with which two sequences, of shape (tokens,) each, begin alike."""
    most = min(len(one), len(other))
    differs = np.flatnonzero(one[:most] != other[:most])
    return int(differs[0]) if len(differs) else most
