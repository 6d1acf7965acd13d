"""``tiny-arithmetic``: one- and two-step word problems in plain English, for real small models (``#### n``).

Level 1 adds or takes away, level 2 multiplies or shares, level 3 takes two steps. There is no misconception to cure:
what a small model lacks here is the habit of calculating first and of ending with the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline_lib.problems.tiny.arithmetic import Operation
from pipeline_lib.problems.tiny.word import NAMES

ITEMS = ("apples", "books", "coins", "cards", "pens", "eggs", "beads", "stamps", "shells", "marbles")
KINDS = {"+": 0.2, "-": 0.2, "*": 0.15, "/": 0.15, "+-": 0.075, "-+": 0.075, "*+": 0.075, "*-": 0.075}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "+": (
        "{name} has {a} {item} and buys {b} more. How many {item} does {name} have now?",
        "There are {a} {item} in one box and {b} {item} in another. How many {item} are there in all?",
        "{name} finds {a} {item} in the morning and {b} in the evening. How many {item} does {name} find that day?",
    ),
    "-": (
        "{name} has {a} {item} and gives away {b}. How many {item} does {name} have left?",
        "There are {a} {item} on a table. {name} takes {b} of them. How many {item} stay on the table?",
        "{name} needs {a} {item} and has {b}. How many more {item} does {name} need?",
    ),
    "*": (
        "There are {a} boxes with {b} {item} in each. How many {item} are there in all?",
        "{name} gets {b} {item} every day. How many {item} does {name} get in {a} days?",
        "Each of {a} children has {b} {item}. How many {item} do they have together?",
    ),
    "/": (
        "{b} children share {a} {item} equally. How many {item} does each child get?",
        "{name} puts {a} {item} into bags of {b}. How many bags does {name} fill?",
        "{a} {item} lie in {b} equal rows. How many {item} are in each row?",
    ),
    "+-": (
        "{name} has {a} {item}, buys {b} more and then gives away {c}. How many {item} does {name} have now?",
        "There are {a} {item} in a box. {name} puts in {b} and takes out {c}. How many {item} are in the box now?",
    ),
    "-+": (
        "{name} has {a} {item}, loses {b} and then finds {c}. How many {item} does {name} have now?",
        "There are {a} {item} in a shop. It sells {b} and then gets {c} new ones. How many {item} does it have now?",
    ),
    "*+": (
        "There are {a} boxes with {b} {item} in each and {c} more {item} on a table. How many {item} are there in all?",
        "{name} buys {a} bags of {b} {item} and has {c} {item} at home. How many {item} does {name} have in all?",
    ),
    "*-": (
        "{name} buys {a} boxes with {b} {item} in each and gives away {c}. How many {item} does {name} have left?",
        "There are {a} rows of {b} {item}. {name} takes {c} of them. How many {item} are left?",
    ),
}


@dataclass(frozen=True, slots=True)
class EverydayProblem:
    """A problem before it is written down.

    Args:
        kind: its operations in order, a key of `KINDS`.
        numbers: a, b and, of two steps, c, as the question names them.
        name: who it is about.
        item: what is counted.
        phrase: index of the wording in `QUESTIONS`, taken modulo their number.
    """

    kind: str
    numbers: tuple[int, ...]
    name: str
    item: str
    phrase: int

    @property
    def level(self) -> int:
        """1 adds or takes away, 2 multiplies or shares, 3 takes two steps."""
        return 3 if len(self.kind) == 2 else 1 if self.kind in "+-" else 2


def make(generator: np.random.Generator, scale: int) -> EverydayProblem:
    """One problem; with `scale` 1 terms are at most 60 and factors at most 12, each further one adds a digit."""
    kind = str(generator.choice(list(KINDS), p=list(KINDS.values())))
    numbers = _draw_numbers(generator, kind, 10 ** (scale - 1))
    name, item = str(generator.choice(NAMES)), str(generator.choice(ITEMS))
    return EverydayProblem(kind, numbers, name, item, int(generator.integers(0, 6)))


def _draw_numbers(generator: np.random.Generator, kind: str, unit: int) -> tuple[int, ...]:
    """The numbers of a problem; no value on the way falls below 1."""

    def draw(high: int) -> int:
        return int(generator.integers(2, max(3, high + 1)))

    a, b = (draw(12 * unit), draw(12 * unit)) if kind[0] in "*/" else (draw(60 * unit), draw(60 * unit))
    match kind[0]:
        case "/":
            return a * b, b
        case "-":
            while a == b:
                b = draw(60 * unit)
            a, b = max(a, b), min(a, b)
    first = {"+": a + b, "-": a - b, "*": a * b}[kind[0]]
    match kind[1:]:
        case "":
            return a, b
        case "-":  # all results alike: one that stood out would be guessed
            return a, b, draw(min(60 * unit, first - 1))
    return a, b, draw(60 * unit)


def question(problem: EverydayProblem) -> str:
    """What is asked."""
    wordings = QUESTIONS[problem.kind]
    numbers = dict(zip("abc", problem.numbers, strict=False))
    return wordings[problem.phrase % len(wordings)].format(name=problem.name, item=problem.item, **numbers)


def solve(problem: EverydayProblem, operation: Operation) -> tuple[list[str], str]:
    """The worked solution's lines, one calculation each, the answer's line last, and the answer.

    Raises:
        ArithmeticError: a wrong value on the way made a division uneven.
    """
    value, *others = problem.numbers
    lines: list[str] = []
    for sign, number in zip(problem.kind, others, strict=True):
        result = operation(sign, value, number)
        lines.append(f"{value} {sign} {number} = {result}")
        value = result
    return [*lines, f"#### {value}"], str(value)
