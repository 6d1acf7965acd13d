"""What a benchmark is made of: the cost of a piece of work, and a figure with its target.

One idea: every figure is a ratio of costs measured in the same run. Where sides take turns, each counts with its
best one: other processes can only slow work down, so the fastest turn is the least disturbed one. Where a few percent
decide, that is too coarse, since the machine's own speed drifts: there the median over many pairs counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

BUSY_SHARE = 0.9  # of a core; work that never waits and gets less shares its core with others


@dataclass(frozen=True, slots=True)
class Cost:
    """What one piece of work took.

    Args:
        amount: of what it made: tokens, or 1.
        wall_s: seconds that passed.
        cpu_s: seconds that this process computed.
    """

    amount: float
    wall_s: float
    cpu_s: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.amount + other.amount, self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def without(self, part: Cost) -> Cost:
        """The cost of the same amount, had `part` not been done in between."""
        return Cost(self.amount, self.wall_s - part.wall_s, self.cpu_s - part.cpu_s)

    def rate(self, clock: str) -> float:
        """Amount per second, ``wall`` or ``cpu``."""
        return self.amount / (self.wall_s if clock == "wall" else self.cpu_s)


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, what it should be, and how it came about.

    Args:
        name: `room.figure`.
        value: the number.
        target: None where it is only reported.
        at_least: the target is a lower bound, else an upper one.
        details: whatever else a reader wants to know, JSON values.
    """

    name: str
    value: float
    target: float | None = None
    at_least: bool = True
    details: dict[str, object] = field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def measure(work: Callable[[], float]) -> Cost:
    """The cost of `work`, which returns the amount it made."""
    wall, cpu = time.perf_counter(), time.process_time()
    amount = work()
    return Cost(amount, time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(
    works: Mapping[str, Callable[[int], float]], *, rounds: int, alternating: bool = False
) -> dict[str, list[Cost]]:
    """Each piece of work once per round, in the given order; a work is told its round.

    Args:
        works: by name.
        rounds: how often each is done.
        alternating: every other round goes backwards, so that none always comes first.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in works}
    for turn in range(rounds):
        for name in list(works)[:: -1 if alternating and turn % 2 else 1]:
            costs[name].append(measure(partial(works[name], turn)))
    return costs


def clock_for(costs: Sequence[Cost]) -> str:
    """``wall``, or ``cpu`` where the machine was not ours.

    Args:
        costs: of work that never waits for anything: where it computed for less than `BUSY_SHARE` of
            the time that passed, others computed on its core.
    """
    share = statistics.median(cost.cpu_s / cost.wall_s for cost in costs)
    return "wall" if share >= BUSY_SHARE else "cpu"


def speedup(
    name: str, fast: Sequence[Cost], slow: Sequence[Cost], *, clock: str, target: float | None, labels: tuple[str, str]
) -> Figure:
    """Best rate of `fast` over best rate of `slow`; the ratios of the single turns are in the details.

    Args:
        name: of the figure.
        fast, slow: turn by turn.
        clock: see `clock_for`.
        target: lower bound.
        labels: what the two sides made, for the details.
    """
    best = [max(cost.rate(clock) for cost in costs) for costs in (fast, slow)]
    details: dict[str, object] = {"clock": clock}
    for each in ("wall", "cpu"):
        ratios = [a.rate(each) / b.rate(each) for a, b in zip(fast, slow, strict=True)]
        details[f"{each}_ratios"] = [round(ratio, 4) for ratio in ratios]
    for label, costs, rate in zip(labels, (fast, slow), best, strict=True):
        details[f"{label}_per_s"] = round(rate, 2)
        details[f"{label}_amounts"] = [cost.amount for cost in costs]
    return Figure(name, best[0] / best[1], target, details=details)


def paired_speedup(
    name: str, fast: Sequence[Cost], slow: Sequence[Cost], *, clock: str, target: float | None, labels: tuple[str, str]
) -> Figure:
    """As `speedup`, but the median of the turns' own ratios; ``quartiles`` in the details are their spread."""
    figure = speedup(name, fast, slow, clock=clock, target=target, labels=labels)
    ratios = [a.rate(clock) / b.rate(clock) for a, b in zip(fast, slow, strict=True)]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    figure.details["quartiles"] = [round(lower, 4), round(upper, 4)]
    return replace(figure, value=median)
