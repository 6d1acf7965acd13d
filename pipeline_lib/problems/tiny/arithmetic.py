"""Exact arithmetic, and arithmetic as a pupil with misconceptions does it.

One idea: a misconception is a *habit*. It strikes one kind of operation, always yields the same
wrong value for the same operands, and strikes more often than not. A policy trained on such work
is greedily wrong on that kind of step but samples the right value often enough for a search to
find it: what self-training can cure. (An undertrained policy instead errs everywhere alike, and
any further training helps it.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline_lib.config import ConfigError

Operation = Callable[[str, int, int], int]


@dataclass(frozen=True, slots=True)
class Misconception:
    """One habit.

    Args:
        name: how reports call it.
        operator: the operation it strikes: ``+ - * / ^ mod`` or ``move``, a term to the other side of an equation.
        applies: whether it strikes these operands.
        value: the wrong value that it yields.
        rate: probability that a worked solution shows it where it applies.
    """

    name: str
    operator: str
    applies: Callable[[int, int], bool]
    value: Callable[[int, int], int]
    rate: float


def compute(operator: str, left: int, right: int) -> int:
    """The exact value of ``left operator right``; ``move`` subtracts, ``/`` must divide evenly.

    Raises:
        ArithmeticError: a quotient that is no integer, or a division by 0.
        ConfigError: an operator that is none of ``+ - * / ^ mod move``.
    """
    match operator:
        case "+":
            return left + right
        case "-" | "move":
            return left - right
        case "*":
            return left * right
        case "^":
            return int(left**right)
        case "mod":
            return left % right
        case "/":
            quotient, remainder = divmod(left, right)
            if remainder:
                raise ArithmeticError(f"{left}/{right} is not an integer")
            return quotient
    raise ConfigError(f"operator {operator!r} is none of + - * / ^ mod move")


def smaller_from_larger(left: int, right: int) -> int:
    """Subtraction digit by digit without borrowing: 52-37 gives 25."""
    width = max(len(str(abs(left))), len(str(abs(right))))
    digits = zip(str(abs(left)).zfill(width), str(abs(right)).zfill(width), strict=True)
    return int("".join(str(abs(int(a) - int(b))) for a, b in digits))


def _needs_borrow(left: int, right: int) -> bool:
    return left > right > 0 and left % 10 < right % 10


MISCONCEPTIONS: tuple[Misconception, ...] = (
    # Shared by both families: curing these in one cures them in the other.
    Misconception("borrow", "-", _needs_borrow, smaller_from_larger, 0.65),
    Misconception(
        "times", "*", lambda a, b: max(a, b) >= 8 and min(a, b) >= 3, lambda a, b: min(a, b) * (max(a, b) - 1), 0.65
    ),
    # Word problems only.
    Misconception("share", "/", lambda a, b: a // b >= 9, lambda a, b: a // b + 1, 0.62),
    # Algebra only.
    Misconception("move", "move", lambda a, b: b >= 20, lambda a, b: a + b, 0.60),
    Misconception("square", "^", lambda a, b: a >= 6, lambda a, b: a * b, 0.62),
)
OTHER_ERROR_RATE = 0.02
"""Share of the remaining operations that are off by one, so that no step is certain."""


def arithmetic_with_misconceptions(
    generator: np.random.Generator, rates: Mapping[str, float] | None = None
) -> Operation:
    """Arithmetic in which misconceptions show: the operation to hand to a solver when a corpus is written.

    Args:
        generator: draws whether a misconception shows this time.
        rates: other rates by misconception name; None takes those of `MISCONCEPTIONS`.
    """
    habits = {habit.operator: habit for habit in MISCONCEPTIONS}

    def operation(operator: str, left: int, right: int) -> int:
        habit = habits.get(operator)
        if habit and habit.applies(left, right):
            rate = habit.rate if rates is None else rates.get(habit.name, habit.rate)
            return habit.value(left, right) if generator.random() < rate else compute(operator, left, right)
        value = compute(operator, left, right)
        if generator.random() < OTHER_ERROR_RATE:
            value += 1 if value <= 1 or generator.random() < 0.5 else -1
        return value

    return operation
