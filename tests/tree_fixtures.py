"""Search trees written as rows: ``(parent, visits, value_sum[, outcome])``, the root first."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pipeline_lib.types import NO_PARENT, Outcome, SearchTree


def make_tree(*rows: tuple[int, int, float] | tuple[int, int, float, Outcome], problem_id: str = "d/train/0"):
    """A `SearchTree` whose node i is row i; steps and tokens are stand-ins."""
    parents = [row[0] for row in rows]
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent == NO_PARENT else depths[parent] + 1)
    return SearchTree(
        problem_id=problem_id,
        policy_id="hand-made",
        seed=0,
        prompt_token_ids=np.array([1], dtype=np.int32),
        parents=np.array(parents, dtype=np.int32),
        steps=("", *(f"step {i}\n" for i in range(1, len(rows)))),
        token_ids=tuple(np.array([i] * (i > 0), dtype=np.int32) for i in range(len(rows))),
        visits=np.array([row[1] for row in rows], dtype=np.int32),
        value_sums=np.array([row[2] for row in rows], dtype=np.float64),
        outcomes=np.array([row[3] if len(row) > 3 else Outcome.OPEN for row in rows], dtype=np.int8),
        depths=np.array(depths, dtype=np.int32),
    )


def flat_tree(*outcomes: Outcome, problem_id: str = "d/train/0"):
    """A root with one child per rollout, which ended as told."""
    right = [float(outcome is Outcome.CORRECT) for outcome in outcomes]
    leaves = [(0, 1, reward, outcome) for reward, outcome in zip(right, outcomes, strict=True)]
    return make_tree((NO_PARENT, len(outcomes), sum(right)), *leaves, problem_id=problem_id)


@st.composite
def trees(draw: st.DrawFn, reward: float | None = None) -> SearchTree:
    """Random trees that a search could have made: every rollout is backed up along its whole path."""
    parents, visits, sums = [NO_PARENT], [0], [0.0]
    for _ in range(draw(st.integers(1, 12))):
        gained = float(draw(st.booleans())) if reward is None else reward
        node, path = 0, [0]
        for _ in range(draw(st.integers(1, 4))):
            children = [i for i, parent in enumerate(parents) if parent == node]
            place = draw(st.integers(0, min(len(children), 3)))
            if place == len(children):
                parents.append(node)
                visits.append(0)
                sums.append(0.0)
                children.append(len(parents) - 1)
            node = children[place]
            path.append(node)
        for i in path:
            visits[i] += 1
            sums[i] += gained
    return make_tree(*zip(parents, visits, sums, strict=True))
