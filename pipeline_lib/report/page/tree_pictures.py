"""Search trees as pictures: how much of each is shown, and where every step lies.

One idea: the picture is an icicle that reads from left to right, like the text it is made of. A step's height is its
visits, so its area is the share of the search that went through it; its colour is its value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline_lib.report.material import MAX_QUESTION_CHARS, MAX_STEP_CHARS, ShownTree, shorten
from pipeline_lib.types import ROOT, Float64Array, Outcome, Problem, SearchTree

MAX_NODES = 120
ROW_REM, MIN_HEIGHT_REM, MAX_HEIGHT_REM = 1.5, 7.0, 30.0
TEXT_REM = 1.15  # a lower cell has no room for its step's first line
MARKS = {Outcome.CORRECT: "✓", Outcome.WRONG: "✗", Outcome.UNPARSED: "?", Outcome.TRUNCATED: "…"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One step in the picture.

    Args:
        node: index of the step in the shown tree.
        parent: index of its parent; 0 is the root, which is not drawn.
        left: from the picture's left edge to the cell's, in per cent of the picture's width.
        top: from the picture's top edge to the cell's, in per cent of the picture's height.
        width: the cell's, in per cent of the picture's width.
        height: the cell's, in per cent of the picture's height.
        tone: ``right`` or ``wrong``, the end of the scale that its value is nearer to.
        strength: how near, in per cent; 0 at a value of one half.
        mark: how its rollouts ended, a character; nothing for an inner step.
        room: lines of text that fit: ``none``, ``one`` or ``two``.
    """

    node: int
    parent: int
    left: float
    top: float
    width: float
    height: float
    tone: str
    strength: float
    mark: str
    room: str


def show_tree(
    tree: SearchTree, scores: Float64Array | None, problem: Problem, *, iteration: int, kind: str
) -> ShownTree:
    """The tree's most visited nodes with their texts cut.

    Args:
        tree: the whole search tree.
        scores: `[N]` float64, relative correctness; None leaves them out.
        problem: the problem that the tree belongs to.
        iteration: number of the iteration, for the page.
        kind: why the tree was chosen, one of `choose_trees`' kinds.
    """
    # A parent has at least its child's visits and stands before it: the first ones of this order form a tree.
    kept = np.sort(np.lexsort((np.arange(tree.num_nodes), -tree.visits))[:MAX_NODES])
    place = {int(node): position for position, node in enumerate(kept)}
    return ShownTree(
        iteration=iteration,
        kind=kind,
        problem_id=tree.problem_id,
        question=shorten(problem.question, MAX_QUESTION_CHARS),
        gold=shorten(problem.answer, MAX_STEP_CHARS),
        num_nodes=tree.num_nodes,
        parents=tuple(place.get(int(tree.parents[node]), -1) for node in kept),
        steps=tuple(shorten(tree.steps[node], MAX_STEP_CHARS) for node in kept),
        visits=tuple(int(tree.visits[node]) for node in kept),
        values=tuple(round(float(tree.values[node]), 4) for node in kept),
        scores=() if scores is None else tuple(round(float(scores[node]), 4) for node in kept),
        outcomes=tuple(int(tree.outcomes[node]) for node in kept),
    )


def height_rem(tree: ShownTree) -> float:
    """Height of the picture: a line of text per rollout where that is not too much."""
    return min(max(tree.visits[ROOT] * ROW_REM, MIN_HEIGHT_REM), MAX_HEIGHT_REM)


def depth_of(tree: ShownTree) -> int:
    """Columns of the picture: steps on the longest drawn path, at least 1."""
    return max(1, max(_depths(tree)))


def cells_of(tree: ShownTree) -> list[Cell]:
    """Where every drawn step lies: siblings one below the other, the most visited first."""
    depths, width = _depths(tree), 100 / depth_of(tree)
    tops, unit = _tops(tree), 100 / max(tree.visits[ROOT], 1)
    row_rem = height_rem(tree) * unit / 100
    return [
        Cell(
            node=node,
            parent=tree.parents[node],
            left=round(width * (depths[node] - 1), 3),
            top=round(unit * tops[node], 3),
            width=round(width, 3),
            height=round(unit * tree.visits[node], 3),
            tone="right" if tree.values[node] >= 0.5 else "wrong",
            strength=round(200 * abs(tree.values[node] - 0.5), 1),
            mark=MARKS.get(Outcome(tree.outcomes[node]), ""),
            room=_room(row_rem * tree.visits[node]),
        )
        for node in range(1, len(tree.parents))
        if tree.visits[node] > 0
    ]


def _room(height: float) -> str:
    return "none" if height < TEXT_REM else "one" if height < 2.3 * TEXT_REM else "two"


def _depths(tree: ShownTree) -> list[int]:
    depths = [0]
    for parent in tree.parents[1:]:
        depths.append(depths[parent] + 1)
    return depths


def _tops(tree: ShownTree) -> list[int]:
    """Rollouts above each node in the picture."""
    tops, used = [0] * len(tree.parents), [0] * len(tree.parents)
    for node in sorted(range(1, len(tree.parents)), key=lambda i: (tree.parents[i], -tree.visits[i], i)):
        parent = tree.parents[node]
        tops[node] = tops[parent] + used[parent]
        used[parent] += tree.visits[node]
    return tops
