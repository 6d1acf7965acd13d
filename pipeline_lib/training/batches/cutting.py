"""A packed tree in parts that fit a forward pass.

One idea: ``j <= i < subtree_ends[j]`` says which tokens a scored one needs, so a packed tree is cut without the tree
that it came from. Trees are dealt to updates whole and cut after that: how much fits a forward pass changes what is
computed twice, never which steps an update learns from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.training.batches.packing import PackedTree

BoolArray = NDArray[np.bool_]


def cut_tree(tree: PackedTree, max_tokens: int) -> list[PackedTree]:
    """The tree in parts of at most `max_tokens`, in order, that repeat the prefixes they need.

    Every scored token is in one part; the two steps of a pair stay together. A single step, or pair, whose path is
    longer than `max_tokens` stays whole. Tokens that no scored one needs are left out; a tree within the bound is
    returned as it is.

    Args:
        tree: of any size.
        max_tokens: at least 1.
    """
    if tree.num_tokens <= max_tokens:
        return [tree]
    needed = np.zeros(tree.num_tokens, dtype=bool)
    seen = np.zeros(tree.num_tokens, dtype=bool)
    parts: list[PackedTree] = []
    starts = _unit_starts(tree)
    begin = 0
    for start, end in zip(starts, [*starts[1:], tree.num_scored_tokens], strict=True):
        unit = _needed(tree, start, end)
        if start > begin and np.count_nonzero(needed | unit) > max_tokens:
            parts.append(_part(tree, begin, start, needed, seen))
            seen |= needed
            begin, needed = start, unit
        else:
            needed = needed | unit
    parts.append(_part(tree, begin, tree.num_scored_tokens, needed, seen))
    return parts


def _unit_starts(tree: PackedTree) -> list[int]:
    """Where in the scored tokens each step, or each pair, begins."""
    units = tree.segments // 2 if tree.num_pairs else tree.segments
    return [0, *(np.flatnonzero(np.diff(units)) + 1).tolist()]


def _needed(tree: PackedTree, start: int, end: int) -> BoolArray:
    """`[T]` tokens on the path of the scored tokens from `start` to `end`, which belong to one or two steps."""
    segments = tree.segments[start:end]
    is_last = np.append(np.diff(segments) != 0, True)  # of its step: what its other tokens see, it sees too
    needed = np.zeros(tree.num_tokens, dtype=bool)
    for source in tree.sources[start:end][is_last]:
        needed[: source + 1] |= tree.subtree_ends[: source + 1] > source
    return needed


def _part(tree: PackedTree, start: int, end: int, needed: BoolArray, seen: BoolArray) -> PackedTree:
    """The scored tokens from `start` to `end` over the tokens that they need.

    Args:
        tree: what is cut.
        start: first scored token.
        end: after the last one.
        needed: `[T]` tokens that the part holds.
        seen: `[T]` tokens that earlier parts hold.
    """
    index = np.concatenate([[0], np.cumsum(needed)]).astype(np.int32)  # of a token among those that stay
    first_pair, last_pair = _pairs_before(tree, start), _pairs_before(tree, end)
    num_new = int(np.count_nonzero(needed & ~seen))
    return PackedTree(
        token_ids=tree.token_ids[needed],
        positions=tree.positions[needed],
        subtree_ends=index[tree.subtree_ends[needed]],
        sources=index[tree.sources[start:end]],
        targets=tree.targets[start:end],
        weights=tree.weights[start:end],
        segments=tree.segments[start:end] - 2 * first_pair,
        num_pairs=last_pair - first_pair,
        # what the whole repeats of an earlier part of its tree lies on the path of its first step
        num_unique_tokens=num_new if start else num_new - (tree.num_tokens - tree.num_unique_tokens),
    )


def _pairs_before(tree: PackedTree, scored: int) -> int:
    """Pairs that lie whole before a scored token; pairs without a scored token count for the part before them."""
    if not tree.num_pairs or not scored:
        return 0
    return tree.num_pairs if scored == tree.num_scored_tokens else int(tree.segments[scored]) // 2
