"""Which child a simulation descends into: UCB1.

A step that has done well is preferred, and a step that was tried less often than its siblings gets a bonus for
that, which shrinks as it is tried.

Departures from the paper (arXiv 2501.01478, of which we know that it selects by UCB):
    1. Ties go to the child that was inserted first, so that equal seeds give equal trees.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline_lib.types import Float64Array, Int32Array


def ucb1_scores(values: Float64Array, visits: Int32Array, parent_visits: int, *, c_uct: float) -> Float64Array:
    """Upper confidence bounds of the children of one node; the largest is descended into.

    ``Q + c_uct * sqrt(ln(N_parent) / N_child)``; a child without visits scores infinity.

    Source: Auer, Cesa-Bianchi and Fischer 2002, with the constant left free.
    Shapes: A is the number of children.

    Args:
        values: `[A]` float64 in [0, 1], mean reward below each child.
        visits: `[A]` int32, simulations through each child, those in flight included.
        parent_visits: visits of the node itself, at least 1.
        c_uct: exploration constant, at least 0.

    Returns:
        `[A]` float64.

    Example: values (0.7, 0.4), visits (10, 20), parent 30, c_uct 0 give (0.7, 0.4): the first is next.
    """
    bonus = np.sqrt(math.log(parent_visits) / np.maximum(visits, 1))
    scores: Float64Array = np.where(visits > 0, values + c_uct * bonus, np.inf)
    return scores


def select(value_sums: Float64Array, visits: Int32Array, parent_visits: int, *, c_uct: float) -> int:
    """Index of the child with the largest `ucb1_scores`; the lowest index when several share it.

    Simulations in flight belong in `visits` and not in `value_sums`. That is the virtual loss: each
    counts as a failure until it is back, so that parallel simulations spread out.

    Shapes: A is the number of children, at least 1.

    Args:
        value_sums: `[A]` float64, sum of rewards below each child.
        visits: `[A]` int32, simulations through each child, those in flight included.
        parent_visits: visits of the node itself, at least 1.
        c_uct: exploration constant, at least 0.

    Example: value sums (1, 1), visits (1, 2), parent 3, c_uct 1: 1 + 1.048 against 0.5 + 0.741 give 0.
    """
    values = value_sums / np.maximum(visits, 1)
    return int(ucb1_scores(values, visits, parent_visits, c_uct=c_uct).argmax())
