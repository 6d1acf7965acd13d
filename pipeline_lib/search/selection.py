"""Where a simulation goes: into which child by UCB1, or to which open node of the whole tree.

UCB1 prefers a step that has done well, and gives one that was tried less often than its siblings a bonus that shrinks
as it is tried. It compares siblings only; the frontier, and entropy, compare all nodes that could be continued.

Departures from the paper (arXiv 2501.01478, of which we know that it selects by UCB):
    1. Ties go to the child, or node, that was inserted first, so that equal seeds give equal trees.
    2. The frontier and entropy are not the paper's; see `frontier_scores` and `entropy_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipeline_lib.types import Float64Array, Int32Array

DEPTH_WEIGHT = 0.1  # below what one rollout moves the other two terms by, so it decides between near equals


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


def frontier_scores(parent_value_sums: Float64Array, parent_visits: Int32Array, depths: Int32Array) -> Float64Array:
    """How much each open node of a tree deserves the next rollout; the largest is continued.

    ``tanh(q) + H(q) + 0.1 * sqrt(depth / deepest)`` with ``q = (W + 1) / (N + 2)`` of the node's parent and
    ``H(q) = -q log2 q - (1 - q) log2 (1 - q)``: worth, uncertainty and depth. A parent below which all is right, or
    all wrong, loses its uncertainty with every rollout.

    Source: the three terms are those of DeepSearch's global frontier (arXiv 2509.25454). Ours: the uncertainty is that
    of the outcome below the parent, not of the policy's tokens; q is a mean under a uniform prior, so that one rollout
    proves nothing; the weights.
    Shapes: A is the number of open nodes.

    Args:
        parent_value_sums: `[A]` float64, sum of rewards below each node's parent.
        parent_visits: `[A]` int32, simulations through the parent, those in flight included (the virtual loss).
        depths: `[A]` int32 steps on the path to each node, at least 1.

    Returns:
        `[A]` float64.

    Example: parents with 1 of 2 and 2 of 2 right, both nodes at depth 1: q is 0.5 and 0.75, the scores are
    0.462 + 1 + 0.1 and 0.635 + 0.811 + 0.1: the undecided one is next.
    """
    q = (parent_value_sums + 1) / (parent_visits + 2)
    uncertainty = -q * np.log2(q) - (1 - q) * np.log2(1 - q)
    scores: Float64Array = np.tanh(q) + uncertainty + DEPTH_WEIGHT * np.sqrt(depths / depths.max())
    return scores


def entropy_scores(surprisals: Sequence[Sequence[float]]) -> Float64Array:
    """How uncertain the policy was of what follows each open node; the most uncertain one is continued.

    The mean over a node's children of ``s = -1/T sum_t log p_t``, over the T tokens of the child's step. At temperature
    1, ``-log p`` of a token is an unbiased estimate of the entropy that it was drawn with.

    Source: the entropy-guided tree search of TreeRL (arXiv 2506.11902) goes on from the tokens of largest -log p in a
    tree. Ours: from whole steps, so a mean over tokens, by which long steps gain nothing; the mean over children.
    Shapes: A is the number of open nodes.

    Args:
        surprisals: of each node's children, one or more, in nats per token, at least 0.

    Returns:
        `[A]` float64, in nats per token.

    Example: children (0.2, 0.6) of one node and (0.5) of another give (0.4, 0.5): the second is next.
    """
    return np.array([sum(of_children) / len(of_children) for of_children in surprisals])
