"""Packed trees into rows, rows into forward passes, forward passes into optimizer updates, dealt out to processes.

One idea: cut evenly at every level. An epoch is cut into updates of nearly equal size, so that none is
a noisy remainder; an update into forward passes of trees of like length, as many for each process; and of all
ways to lay these in rows the cheapest with little padding is taken. Updates learn from the same steps whatever fits a
forward pass, and for any number of processes.

The linear layers cost rows times length, attention rows times length squared: they break even at a row length
of about six times the hidden size (24 H^2 against 4 T H operations per token and layer; measured
700 tokens for hidden size 128 on one CPU thread). Below it padding matters more than length. Where attention goes by
blocks, see `architectures.tree_attention`, it costs by the token too, and no row is too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.training.batches.cutting import cut_tree
from pipeline_lib.training.batches.grafting import share_beginnings
from pipeline_lib.training.batches.packing import PackedTree
from pipeline_lib.types import Float64Array

MAX_PADDING = 0.1  # padding that is paid for shorter rows, as a share of the tokens
NUM_WIDTHS = 32  # row lengths tried; more changes the cost by less than 1 %
ROW_MULTIPLE = 8  # CUDA's memory-efficient attention wants masks aligned to 8


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One forward pass.

    Shapes: B rows, T tokens of a row, M scored tokens.

    Args:
        token_ids: `[B, T]` int64, 0 where padded.
        positions: `[B, T]` int64.
        subtree_ends: `[B, T]` int64; a token of padding is seen by itself only.
        sources: `[M]` int64 into the flattened rows, ``row * T + column``.
        targets: `[M]` int64.
        weights: `[M]` float64.
        segments: `[M]` int64, see `PackedTree`; pairs are numbered through the batch.
        num_pairs: pairs in the batch.
        num_unique_tokens: tokens without padding and repeated prefixes.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    subtree_ends: NDArray[np.int64]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: Float64Array
    segments: NDArray[np.int64]
    num_pairs: int
    num_unique_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens computed, padding included: B times T."""
        return int(self.token_ids.size)

    @property
    def num_scored_tokens(self) -> int:
        return len(self.targets)

    @property
    def num_weighted_tokens(self) -> int:
        """Scored tokens that the likelihood reads; the KL may read more."""
        return int(np.count_nonzero(self.weights))


def plan_updates(
    trees: Sequence[PackedTree],
    order: NDArray[np.int64],
    *,
    tokens_per_update: int,
    tokens_per_microbatch: int,
    break_even_tokens: int,
    num_processes: int = 1,
) -> Iterator[list[PackedBatch]]:
    """One epoch: the updates, each a list of forward passes whose gradients add up; packed one at a time.

    Args:
        trees: all packed trees, none larger than an update.
        order: indices into `trees`, the epoch's permutation.
        tokens_per_update: upper bound of an update's tokens, padding not counted, a shared beginning in each tree.
        tokens_per_microbatch: upper bound of a forward pass's tokens, padding not counted, a shared beginning once;
            larger trees are cut.
        break_even_tokens: row length at which attention costs as much as everything else.
        num_processes: forward passes of an update are a multiple of it, where there are trees enough.
    """
    for members in split_evenly([trees[index] for index in order], tokens_per_update):
        fitting = [part for tree in members for part in cut_tree(tree, tokens_per_microbatch)]
        by_length = sorted(fitting, key=lambda tree: -tree.num_tokens)  # like with like; gradients add up anyway
        parts = split_evenly(by_length, tokens_per_microbatch, multiple=num_processes, measure=_num_computed)
        yield [pack_rows(share_beginnings(part), break_even_tokens=break_even_tokens) for part in parts]


def _num_tokens(trees: Sequence[PackedTree]) -> int:
    return sum(tree.num_tokens for tree in trees)


def _num_computed(trees: Sequence[PackedTree]) -> int:
    """Tokens of a forward pass over the trees."""
    return _num_tokens(share_beginnings(trees))


def deal(batches: Sequence[PackedBatch], num_processes: int) -> list[list[PackedBatch]]:
    """The forward passes of each process: none has more than their mean, rounded up, and tokens are near even.

    Largest first, each to the process with the fewest tokens among those that have room.

    Example: passes of 9, 8, 3 and 2 tokens for 2 processes give (9, 2) and (8, 3).
    """
    room = -(-len(batches) // num_processes)
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    for index in sorted(range(len(batches)), key=lambda index: -batches[index].num_tokens):
        free = [share for share in shares if len(share) < room]
        min(free, key=lambda share: sum(batches[other].num_tokens for other in share)).append(index)
    return [[batches[index] for index in sorted(share)] for share in shares]


def idle_batch() -> PackedBatch:
    """The smallest forward pass there is, for a process that has none while the others have."""
    row = np.zeros((1, ROW_MULTIPLE), dtype=np.int64)
    one = np.zeros(1, dtype=np.int64)
    ends = np.arange(1, ROW_MULTIPLE + 1)[None]
    return PackedBatch(row, row, ends, one, one, weights=np.zeros(1), segments=one, num_pairs=1, num_unique_tokens=0)


def split_evenly(
    trees: Sequence[PackedTree],
    max_tokens: int,
    *,
    multiple: int = 1,
    measure: Callable[[Sequence[PackedTree]], int] = _num_tokens,
) -> list[list[PackedTree]]:
    """`trees` in order, in the fewest groups of nearly equal size that hold at most `max_tokens` each.

    A tree larger than `max_tokens` gets a group of its own. The number of groups tried is a multiple of `multiple`;
    `measure` says how many tokens a group holds, no more than its trees do alone.

    Example: sizes 4, 4, 4, 4, 4 with at most 12 give groups of 3 and 2, not of 3, 1 and 1.
    """
    lengths = np.array([tree.num_tokens for tree in trees], dtype=np.int64)
    if not len(lengths):
        return []
    middles, total = np.cumsum(lengths) - lengths / 2, int(lengths.sum())
    fewest = -(-measure(trees) // (max_tokens * multiple)) * multiple
    for num_groups in range(fewest, len(trees), multiple):
        ends = np.searchsorted(middles * num_groups / total, np.arange(1, num_groups + 1))
        groups = [list(trees[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True) if end > start]
        if all(len(group) == 1 or measure(group) <= max_tokens for group in groups):
            return groups
    return [[tree] for tree in trees]


def pack_rows(trees: Sequence[PackedTree], *, break_even_tokens: int) -> PackedBatch:
    """The trees in rows of one length: the cheapest of those with at most `MAX_PADDING`, or the one with least padding.

    ``cost = rows * length * (length + break_even_tokens)``.

    Source: our choice.
    """
    lengths = [tree.num_tokens for tree in trees]
    total, longest = sum(lengths), max(lengths)
    plans: list[tuple[float, int, int, list[list[int]]]] = []
    for capacity in np.unique(np.linspace(longest, max(longest, min(total, 8 * longest)), NUM_WIDTHS).astype(int)):
        rows = first_fit_decreasing(lengths, int(capacity))
        fullest = max(sum(lengths[index] for index in row) for row in rows)
        width = -(-fullest // ROW_MULTIPLE) * ROW_MULTIPLE  # rounded up
        num_tokens = len(rows) * width
        plans.append((max(num_tokens / total - 1, MAX_PADDING), num_tokens * (width + break_even_tokens), width, rows))
    _, _, width, best = min(plans, key=lambda plan: plan[:3])
    return _collate([[trees[index] for index in row] for row in best], width)


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of indices whose lengths sum to at most `capacity`: longest first, each into the first row with room.

    Source: Johnson 1973; at most 11/9 of the best number of rows, plus one.

    Example: lengths (3, 6, 5, 4) with capacity 9 give rows (1, 0) and (2, 3).
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        row = next((row for row, free in enumerate(room) if free >= lengths[index]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def _collate(rows: Sequence[Sequence[PackedTree]], width: int) -> PackedBatch:
    token_ids = np.zeros((len(rows), width), dtype=np.int64)
    positions = np.zeros_like(token_ids)
    subtree_ends = np.tile(np.arange(1, width + 1), (len(rows), 1))
    sources: list[NDArray[np.int64]] = []
    segments: list[NDArray[np.int64]] = []
    num_pairs = 0
    for row, members in enumerate(rows):
        start = 0
        for tree in members:
            columns = slice(start, start + tree.num_tokens)
            token_ids[row, columns] = tree.token_ids
            positions[row, columns] = tree.positions
            subtree_ends[row, columns] = tree.subtree_ends + start
            sources.append(tree.sources.astype(np.int64) + row * width + start)
            segments.append(tree.segments.astype(np.int64) + 2 * num_pairs)
            num_pairs += tree.num_pairs
            start += tree.num_tokens
    trees = [tree for members in rows for tree in members]
    return PackedBatch(
        token_ids=token_ids,
        positions=positions,
        subtree_ends=subtree_ends,
        sources=np.concatenate(sources),
        targets=np.concatenate([tree.targets for tree in trees]).astype(np.int64),
        weights=np.concatenate([tree.weights for tree in trees]),
        segments=np.concatenate(segments),
        num_pairs=num_pairs,
        num_unique_tokens=sum(tree.num_unique_tokens for tree in trees),
    )
