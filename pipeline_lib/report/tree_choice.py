"""Which few of an iteration's many trees are worth a look, told from their roots alone.

A report shows one tree of each kind, so that its reader sees the whole range. A list of traces is read from the top, so
there stand the trees that taught most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

RootCount = tuple[str, int, float, int]  # problem id, rollouts, sum of rewards, nodes: `pipeline_lib.search.read_roots`


def rewards_in_words(total: float, num_rollouts: int) -> str:
    """How a tree's rollouts did: how many were right, or the mean of a verifier's rewards between 0 and 1.

    Args:
        total: sum of the rewards, each in [0, 1]; within 1e-4 a rollout, as a page keeps means to four places.
        num_rollouts: how many there are.

    Example:
        >>> rewards_in_words(3.0, 8), rewards_in_words(2.5, 4)
        ('3 of 8 rollouts right', 'mean reward 0.62 of 4 rollouts')
    """
    if math.isclose(total, round(total), rel_tol=0, abs_tol=1e-4 * num_rollouts):
        return f"{round(total)} of {num_rollouts} rollouts right"
    return f"mean reward {total / num_rollouts:.2f} of {num_rollouts} rollouts"


def one_tree_of_each_kind(roots: Sequence[RootCount]) -> dict[str, str]:
    """Problem id by kind, as far as there is a tree of that kind.

    Informative trees at the ends and in the middle of how often their rollouts are right, and one that never
    is; among equals the one with most steps, then the first by problem id, so that equal searches show equal trees.

    Args:
        roots: one per tree.
    """
    ordered = sorted(roots)
    mixed = [root for root in ordered if 0 < _share_right(root) < 1]
    chosen: dict[str, str] = {}
    for kind, aim in (("evenly split", 0.5), ("rarely right", 0.0), ("mostly right", 1.0)):
        left = [root for root in mixed if root[0] not in chosen.values()]
        if left:
            chosen[kind] = min(left, key=lambda root: (abs(_share_right(root) - aim), -_size(root)))[0]
    never = [root for root in ordered if root[1] > 0 and _share_right(root) == 0]
    if never:
        chosen["never right"] = max(never, key=_size)[0]
    return chosen


def most_informative_trees(roots: Sequence[RootCount], limit: int) -> list[str]:
    """Problem ids of the trees that taught most: right and wrong rollouts in equal parts, then most steps.

    A tree that only succeeds or only fails scored nothing, so it teaches nothing; such trees come last.

    Args:
        roots: one per tree.
        limit: how many to choose.

    Example: of trees with 8, 4 and 1 right of 8 rollouts the order is the second, the third, the first.
    """

    def rank(root: RootCount) -> tuple[float, int, str]:
        share = _share_right(root)
        return (-share * (1.0 - share), -_size(root), root[0])

    return [root[0] for root in sorted(roots, key=rank)[:limit]]


def _share_right(root: RootCount) -> float:
    _, num_rollouts, num_right, _ = root
    return num_right / max(num_rollouts, 1)


def _size(root: RootCount) -> int:
    return root[3]
