"""Search trees as traces: what a tracing viewer can show of a tree.

One idea: a node becomes a span, and its visits become the span's length. A viewer's timeline is then an
icicle: the wider a step, the more rollouts went through it, and children stand below the part of their parent
that they took. So a trace's "milliseconds" are rollouts; no wall time of a search is kept per node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline_lib.report.tree_choice import rewards_in_words
from pipeline_lib.types import NO_PARENT, ROOT, Float64Array, JsonDict, Outcome, Problem, SearchTree

MAX_SPANS, MAX_CHARS, MAX_NAME_CHARS = 64, 1000, 60


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """One node.

    Args:
        node: its index in the tree; 0 is the root.
        parent: index of the parent, which stands before it; None for the root.
        name: the step on one line, cut; ✓ or ✗ before it where a rollout ends.
        inputs: the step, or for the root the question and its answer.
        outputs: visits, value, outcome, score.
        start: rollouts before this span begins.
        length: rollouts through the node.
        is_right: how the rollout that ends here ended; None where none ends.
    """

    node: int
    parent: int | None
    name: str
    inputs: JsonDict
    outputs: JsonDict
    start: int
    length: int
    is_right: bool | None


@dataclass(frozen=True, slots=True)
class TreeTrace:
    """One tree, parents before children.

    Args:
        problem_id: unique within an iteration.
        title: the question; a list of traces shows it as the request.
        verdict: how many rollouts were right; a list of traces shows it as the response.
        tags: name to text, to search for.
        spans: the nodes that are shown.
    """

    problem_id: str
    title: str
    verdict: str
    tags: dict[str, str]
    spans: tuple[TraceSpan, ...]


def trace_tree(tree: SearchTree, problem: Problem, scores: Float64Array | None = None) -> TreeTrace:
    """The tree as a trace of at most `MAX_SPANS` spans: the most visited nodes, each with its parent.

    Shapes: N nodes.

    Args:
        tree: a finished one.
        problem: the problem that it belongs to.
        scores: `[N]` float64, relative correctness; None leaves them out.
    """
    starts = _starts(tree)
    nodes = _most_visited(tree, MAX_SPANS)
    cut = f", the {len(nodes)} most visited of {tree.num_nodes} nodes" if len(nodes) < tree.num_nodes else ""
    return TreeTrace(
        problem_id=tree.problem_id,
        title=_cut(problem.question, MAX_CHARS),
        verdict=rewards_in_words(float(tree.value_sums[ROOT]), tree.num_rollouts) + cut,
        tags={"coppice.problem_id": tree.problem_id, "coppice.policy_id": tree.policy_id},
        spans=tuple(_span(tree, node, problem, scores, int(starts[node])) for node in nodes),
    )


def _most_visited(tree: SearchTree, limit: int) -> list[int]:
    """Ascending indices; a parent has at least its child's visits and a smaller index, so no node loses its parent."""
    order = np.lexsort((np.arange(tree.num_nodes), -tree.visits))
    return sorted(int(node) for node in order[:limit])


def _starts(tree: SearchTree) -> list[int]:
    """Where each node's span begins: where its parent's does, after its elder siblings."""
    starts, taken = [0] * tree.num_nodes, [0] * tree.num_nodes
    for node, parent in enumerate(tree.parents.tolist()):
        if parent != NO_PARENT:
            starts[node] = starts[parent] + taken[parent]
            taken[parent] += int(tree.visits[node])
    return starts


def _span(tree: SearchTree, node: int, problem: Problem, scores: Float64Array | None, start: int) -> TraceSpan:
    outcome, parent = Outcome(int(tree.outcomes[node])), int(tree.parents[node])
    outputs: JsonDict = {
        "visits": int(tree.visits[node]),
        "value": round(float(tree.values[node]), 4),
        "outcome": outcome.name.lower(),
    }
    if scores is not None and parent != NO_PARENT:
        outputs["score"] = round(float(scores[node]), 4)
    is_right = None if outcome is Outcome.OPEN else outcome is Outcome.CORRECT
    step = tree.steps[node].strip()
    mark = {None: "", True: "✓ ", False: "✗ "}[is_right]  # a viewer's list of spans shows names, hardly states
    return TraceSpan(
        node=node,
        parent=None if parent == NO_PARENT else parent,
        name=tree.problem_id if parent == NO_PARENT else mark + _cut(" ".join(step.split()), MAX_NAME_CHARS),
        inputs=(
            {"question": _cut(problem.question, MAX_CHARS), "answer": _cut(problem.answer, MAX_CHARS)}
            if parent == NO_PARENT
            else {"step": _cut(step, MAX_CHARS)}
        ),
        outputs=outputs,
        start=start,
        length=int(tree.visits[node]),
        is_right=is_right,
    )


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
