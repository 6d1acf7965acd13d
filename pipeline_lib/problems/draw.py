"""Which problems a run holds out, which an iteration sees, and which a test set asks.

One idea: the draws of a whole run are one endless sequence, a permutation of the pool after another,
and iteration k takes the k-th window of it. So nothing has to be remembered between iterations, and
a lazy pool makes only the problems that are drawn. A curriculum changes what is taken of a window, never the windows.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.problems.pools import ProblemPool
from pipeline_lib.problems.rows import ProblemsError
from pipeline_lib.seeding import derive_generator
from pipeline_lib.types import Problem

IntArray = NDArray[np.int64]
ASKED_AGAIN_SHARE = 0.5  # of a draw, at most: repeats overfit
TEST_SEED = 0  # of the order of test sets, and of worked examples: the same in every run, whatever its seed
NO_LEVEL = "none"
SHOTS_LOOKED_AT = 16  # problems for each worked example, among which levels are looked for


class DrawnProblems(list[Problem]):
    """One iteration's problems, all different.

    Args:
        problems: what was drawn, in that order.
        num_reused: how many of them an earlier iteration has drawn already.
        note: what a user should know about the draw, one sentence; "" when it is as asked.
    """

    def __init__(self, problems: Iterable[Problem], num_reused: int = 0, note: str = "") -> None:
        super().__init__(problems)
        self.num_reused = num_reused
        self.note = note


def hold_out(pool: ProblemPool, num_validation: int, *, seed: int) -> list[Problem]:
    """The validation set: the pool's own validation split where it has one, else cut from the pool.

    Args:
        pool: the train split.
        num_validation: problems to hold out; a validation split that is smaller is taken whole.
        seed: of this choice alone, not the run's: runs of other seeds then hold out the same problems.

    Raises:
        ProblemsError: there are not that many, or nothing would be left to train on.
    """
    if pool.validation is not None:
        chosen = _permutation(len(pool.validation), seed, "validation", 0)[:num_validation]
        return [pool.validation[i] for i in chosen.tolist()]
    return [pool[i] for i in _cut(pool, num_validation, seed)[0].tolist()]


def draw_test(pool: ProblemPool, num_problems: int) -> list[Problem]:
    """The problems of a test set: the first ones of an order that no run changes; a smaller pool is asked whole.

    Files are often sorted by subject or level, so their order is a permutation; generated ones are in no order.

    Args:
        pool: the test split.
        num_problems: problems to ask, at most.
    """
    if pool.is_generated:
        return list(pool[:num_problems])
    return [pool[i] for i in _permutation(len(pool), TEST_SEED, "test", 0)[:num_problems].tolist()]


def draw_shots(
    pool: ProblemPool, num_problems: int, *, levels: Sequence[str] = (), num_validation: int, validation_seed: int
) -> list[Problem]:
    """Problems for worked examples: the same ones in every run, none of them held out.

    A small model copies the form of its examples, the last ones most: shown one-step solutions alone, it took one step
    everywhere.

    Args:
        pool: the train split.
        num_problems: problems to draw.
        levels: what their metadata have as `level`, `NO_LEVEL` where they have none, in order, the last one for all
            that follow; empty: of as many levels as there are.
        num_validation: how many problems `hold_out` takes from the pool.
        validation_seed: the seed that `hold_out` was given.

    Raises:
        ProblemsError: there are not that many, or not of such a level.
    """
    rest = np.arange(len(pool)) if pool.validation is not None else _cut(pool, num_validation, validation_seed)[1]
    if num_problems > len(rest):
        raise ProblemsError(
            f"policy.num_shots={num_problems - 1}: {pool.name} has {len(rest)} problems that are not held out, and one "
            "more than shots is needed; lower it"
        )
    looked_at = rest[_permutation(len(rest), TEST_SEED, "shots", 0)[: SHOTS_LOOKED_AT * num_problems]]
    problems = [pool[i] for i in looked_at.tolist()]
    if not levels:
        return _of_all_levels(problems)[:num_problems]
    return [_take_level(problems, levels[min(place, len(levels) - 1)]) for place in range(num_problems)]


def _take_level(problems: list[Problem], level: str) -> Problem:
    """The first problem of a level, which is taken out of `problems`."""
    for problem in problems:
        if problem.metadata.get("level", NO_LEVEL) == level:
            problems.remove(problem)
            return problem
    known = sorted({problem.metadata.get("level", NO_LEVEL) for problem in problems})
    raise ProblemsError(
        f"policy.shot_levels: too few problems of level {level!r} were found; levels: {', '.join(known)}"
    )


def _of_all_levels(problems: Sequence[Problem]) -> list[Problem]:
    """`problems` in turn from each level that their metadata name, those without one as they stand."""
    before: Counter[str] = Counter()
    ranks = []
    for problem in problems:
        level = problem.metadata.get("level", "")
        ranks.append(before[level])
        before[level] += 1
    return [problem for _, problem in sorted(zip(ranks, problems, strict=True), key=lambda item: item[0])]


def draw_problems(
    pool: ProblemPool,
    num_problems: int,
    *,
    num_validation: int,
    validation_seed: int,
    seed: int,
    iteration: int,
    fresh: bool = True,
) -> DrawnProblems:
    """The problems of one iteration: all different, never held out and, while the pool lasts, never drawn before.

    A pool that runs out is begun again in another order, and the draw's note says so.

    Args:
        pool: the train split.
        num_problems: problems to draw, at least 1; a smaller pool is drawn whole.
        num_validation: how many problems `hold_out` takes from the pool.
        validation_seed: the seed that `hold_out` was given: what it took is left out here.
        seed: the run's seed.
        iteration: number of the iteration, from 1.
        fresh: goes on where the last iteration ended; otherwise every iteration gets the first one's problems.

    Raises:
        ProblemsError: nothing is left to draw.
    """
    if iteration < 1:
        raise ValueError(f"iteration {iteration}: iterations that draw problems count from 1")
    rest = np.arange(len(pool)) if pool.validation is not None else _cut(pool, num_validation, validation_seed)[1]
    size, count = len(rest), min(num_problems, len(rest))
    number, offset = divmod((iteration - 1) * count if fresh else 0, size)
    window = _order(size, count, number, seed)[offset : offset + count]
    if len(window) < count:
        window = np.concatenate([window, _order(size, count, number + 1, seed)[: count - len(window)]])
    num_reused = _num_reused(count, size, iteration, fresh=fresh)
    notes = []
    if count < num_problems:
        notes.append(f"{num_problems} problems were asked for and {pool.name} has {size}: all are drawn")
    if fresh and num_reused:
        notes.append(f"the {size} problems of {pool.name} have run out: {num_reused} of {count} were drawn before")
    return DrawnProblems((pool[i] for i in rest[window].tolist()), num_reused, "; ".join(notes))


def prefer_informative(
    drawn: DrawnProblems, asked: Sequence[Problem], solve_rates: Mapping[str, float]
) -> DrawnProblems:
    """As many problems, where earlier solve rates promise trees with right and wrong rollouts.

    First, up to half, those asked before with a rate p between 0 and 1, by ``4 p (1 - p)``; then what was drawn, by the
    mean of ``4 p (1 - p)`` over the problems asked before that share its metadata (over all, where none does). Ties
    go by problem id, and among the drawn ones by their order.

    Source: ``p (1 - p)`` is the variance of a reward that is 1 or 0, largest where a problem is solved half the time;
    the two halves are our choice.

    Args:
        drawn: what the iteration would ask without a curriculum.
        asked: the problems of earlier iterations, oldest first.
        solve_rates: share of right rollouts, or mean reward, in [0, 1] by problem id, from the last time it was asked.

    Example: of 4 drawn problems two stay where two or more were undecided before; all stay where none was.
    """
    before = {problem.problem_id: problem for problem in asked if problem.problem_id in solve_rates}
    promise = {name: 4 * solve_rates[name] * (1 - solve_rates[name]) for name in before}
    ranked = sorted(before, key=lambda name: (-promise[name], name))
    again = [name for name in ranked if promise[name] > 0][: int(ASKED_AGAIN_SHARE * len(drawn))]
    groups: defaultdict[tuple[tuple[str, str], ...], list[float]] = defaultdict(list)
    for name, problem in before.items():
        groups[_group(problem)].append(promise[name])
    overall = math.fsum(promise.values()) / max(len(promise), 1)
    fresh = [problem for problem in drawn if problem.problem_id not in again]
    fresh.sort(key=lambda p: -_mean(groups[_group(p)], overall))
    chosen = [*(before[name] for name in again), *fresh][: len(drawn)]
    num_reused = sum(problem.problem_id in before for problem in chosen)
    note = f"{len(again)} of {len(chosen)} problems are asked again: earlier iterations solved them now and then"
    return DrawnProblems(chosen, num_reused, "; ".join(filter(None, (drawn.note, note))))


def _group(problem: Problem) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(problem.metadata.items()))


def _mean(values: Sequence[float], otherwise: float) -> float:
    return math.fsum(values) / len(values) if values else otherwise


def _num_reused(count: int, size: int, iteration: int, *, fresh: bool) -> int:
    """How many of an iteration's `count` problems an earlier one has drawn already, from a pool of `size`."""
    if not fresh:
        return 0 if iteration == 1 else count
    num_left = size - (iteration - 1) * count  # below 0 once the pool has run out
    return count - max(0, min(count, num_left))


def _cut(pool: ProblemPool, num_validation: int, seed: int) -> tuple[IntArray, IntArray]:
    """Indices that are held out, and the rest, each ascending."""
    if not 0 <= num_validation < len(pool):
        raise ProblemsError(
            f"problems.num_validation={num_validation}: {pool.name} has {len(pool)} problems; set it below that"
        )
    order = _permutation(len(pool), seed, "validation", 0)
    return np.sort(order[:num_validation]), np.sort(order[num_validation:])


def _permutation(size: int, seed: int, purpose: str, number: int) -> IntArray:
    return derive_generator(seed, purpose, number).permutation(size).astype(np.int64)


def _order(size: int, count: int, number: int, seed: int) -> IntArray:
    """The pool's permutation number `number`; those that share a window with its start come last in it.

    Without that a window over the seam of two permutations could hold a problem twice.
    """
    order = _permutation(size, seed, "draw", 0)
    for i in range(1, number + 1):
        num_in_seam = (i * size) % count
        seam = order[size - num_in_seam :]
        order = _permutation(size, seed, "draw", i)
        is_late = np.isin(order, seam)
        order = np.concatenate([order[~is_late], order[is_late]])
    return order
