"""A tree as one sequence: every token once, each seeing its ancestors only.

One idea: lay the nodes out depth first. Then the descendants of a token are the stretch right after
it, and the whole attention mask is one number per token, where that stretch ends:
token i sees token j exactly if ``j <= i < subtree_ends[j]``. Trees laid one after another in a row
cannot see each other for the same reason, so rows need no further mask.

A per-step data set would compute a prefix once per step that follows it; here it is computed once.
The hidden state that predicts a step's first token is the last token of its *parent*, which is not
the token to its left; `PackedTree.sources` says which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline_lib.types import ROOT, STOPPED, Float64Array, Int32Array, Outcome, SearchTree, TrainingExample

Unit = tuple[int, ...]

ENDED_BY_POLICY = (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED)


@dataclass(frozen=True, slots=True)
class PackedTree:
    """One tree, or the part of a large one that fits a forward pass, as a sequence of T tokens.

    Shapes: T tokens, M scored tokens, R pairs.

    Args:
        token_ids: `[T]` int32.
        positions: `[T]` int32, depth in tokens: what the position would be with the path alone in a row.
        subtree_ends: `[T]` int32, index after the last token that may see this one.
        sources: `[M]` int32, index of the token whose hidden state predicts the scored token.
        targets: `[M]` int32, id of the scored token.
        weights: `[M]` float64, what the loss multiplies its negative log-likelihood by; 0 where the KL alone reads it.
        segments: `[M]` int32; with pairs ``2 r`` for tokens of pair r's preferred step and ``2 r + 1``
            for the other's; without, the node.
        num_pairs: R.
        num_unique_tokens: tokens that no earlier part of the same tree holds.
    """

    token_ids: Int32Array
    positions: Int32Array
    subtree_ends: Int32Array
    sources: Int32Array
    targets: Int32Array
    weights: Float64Array
    segments: Int32Array
    num_pairs: int
    num_unique_tokens: int

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_scored_tokens(self) -> int:
        return len(self.targets)


def pack_example(example: TrainingExample, *, eos_token_id: int, kl_on_path: bool = False) -> PackedTree:
    """The example as one packed tree of whatever size, see `cutting`; steps that nothing scored needs are left out.

    Where the policy itself ended a rollout, the token that ended it is part of what was
    sampled: it is scored with that step, so that stopping is trained too. Where a stop string did, no token was
    sampled for it, and the step's own tokens are all that is scored.

    Args:
        example: weights, or pairs, say which steps are scored; the rest is context.
        eos_token_id: scored where the tree does not say which token ended a rollout.
        kl_on_path: steps before a scored one are among the scored tokens too, with weight 0: the KL alone reads them.

    Raises:
        ValueError: the tree has no prompt tokens.
    """
    tree = example.tree
    if not len(tree.prompt_token_ids):
        raise ValueError(f"{tree.problem_id}: its tree has no prompt tokens; search it again")
    order = depth_first(tree)
    rank = np.empty(tree.num_nodes, dtype=np.int64)
    rank[order] = np.arange(tree.num_nodes)
    units = sorted(_units(example, kl_on_path), key=lambda unit: int(rank[unit[0]]))
    nodes = _with_ancestors(tree, units)
    return _lay_out(example, [int(node) for node in order if int(node) in nodes], units, eos_token_id)


def depth_first(tree: SearchTree) -> Int32Array:
    """`[N]` int32: nodes with every subtree in one stretch, children in their own order.

    Example: parents (-1, 0, 0, 1) give (0, 1, 3, 2).
    """
    groups = tree.sibling_groups()
    order: list[int] = []
    stack = [ROOT]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(int(child) for child in groups.get(node, ())[::-1])
    return np.array(order, dtype=np.int32)


def _units(example: TrainingExample, kl_on_path: bool) -> list[Unit]:
    """What has to stay together: single steps, or both steps of a pair."""
    if len(example.pairs):
        return [(int(preferred), int(dispreferred)) for preferred, dispreferred in example.pairs]
    units: list[Unit] = [(int(node),) for node in np.flatnonzero(example.weights)]
    return [(node,) for node in sorted(_with_ancestors(example.tree, units) - {ROOT})] if kl_on_path else units


def _with_ancestors(tree: SearchTree, units: Sequence[Unit]) -> set[int]:
    nodes = {ROOT}
    for node in (node for unit in units for node in unit):
        while node not in nodes:
            nodes.add(node)
            node = int(tree.parents[node])
    return nodes


def _tokens(tree: SearchTree, node: int) -> Int32Array:
    return tree.prompt_token_ids if node == ROOT else tree.token_ids[node]


def _lay_out(example: TrainingExample, nodes: list[int], units: list[Unit], eos_token_id: int) -> PackedTree:
    """One sequence of `nodes`, which stand depth first with all their ancestors."""
    parents = example.tree.parents
    pieces = [_tokens(example.tree, node) for node in nodes]
    lengths = [len(piece) for piece in pieces]
    starts = dict(zip(nodes, np.cumsum([0, *lengths[:-1]]).tolist(), strict=True))
    ends = {node: starts[node] + length for node, length in zip(nodes, lengths, strict=True)}
    depths = {ROOT: 0}  # in tokens
    last = {ROOT: ends[ROOT] - 1}
    for node in nodes[1:]:
        parent = int(parents[node])
        depths[node] = depths[parent] + len(_tokens(example.tree, parent))
        last[node] = ends[node] - 1 if ends[node] > starts[node] else last[parent]  # a rollout may end without a token
    subtree_ends = dict(ends)
    for node in reversed(nodes[1:]):
        parent = int(parents[node])
        subtree_ends[parent] = max(subtree_ends[parent], subtree_ends[node])
    token_ids = np.concatenate(pieces).astype(np.int32)
    shifts = np.repeat([depths[node] - starts[node] for node in nodes], lengths)
    sources, targets, weights, segments = _scored_tokens(example, units, starts, last, eos_token_id)
    return PackedTree(
        token_ids=token_ids,
        positions=(np.arange(len(token_ids)) + shifts).astype(np.int32),
        subtree_ends=np.repeat([subtree_ends[node] for node in nodes], lengths).astype(np.int32),
        sources=sources,
        targets=targets,
        weights=weights,
        segments=segments,
        num_pairs=len(units) if len(example.pairs) else 0,
        num_unique_tokens=len(token_ids),
    )


def _scored_tokens(
    example: TrainingExample, part: list[Unit], starts: dict[int, int], last: dict[int, int], eos_token_id: int
) -> tuple[Int32Array, Int32Array, Float64Array, Int32Array]:
    """The fields `sources`, `targets`, `weights` and `segments` of the packed tree."""
    tree = example.tree
    nodes = [node for unit in part for node in unit]
    sources: list[Int32Array] = []
    targets: list[Int32Array] = []
    for node in nodes:
        ids = tree.token_ids[node]
        inside = np.arange(starts[node], starts[node] + len(ids), dtype=np.int32)
        if tree.outcomes[node] in ENDED_BY_POLICY and not tree.cutoffs[node]:  # else no end was sampled
            known = tree.end_token_id(node)
            ids = ids if known == STOPPED else np.append(ids, np.int32(eos_token_id if known is None else known))
        targets.append(ids)
        sources.append(np.append(np.int32(last[int(tree.parents[node])]), inside)[: len(ids)])
    lengths = [len(ids) for ids in targets]
    return (
        np.concatenate(sources).astype(np.int32),
        np.concatenate(targets).astype(np.int32),
        np.repeat(np.ones(len(nodes)) if len(example.pairs) else example.weights[nodes], lengths),
        np.repeat(np.arange(len(nodes)) if len(example.pairs) else nodes, lengths).astype(np.int32),
    )
