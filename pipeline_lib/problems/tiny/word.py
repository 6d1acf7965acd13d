"""``tiny-word``: stories with names, units and 2 to 5 arithmetic steps, in GSM8K's form (``#### n``).

A story is a quantity and the events that change it, so the worked solution is one line
per event and any arithmetic, exact or misconceived, can be run through it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline_lib.problems.tiny.arithmetic import Operation, compute

NAMES = ("Mia", "Ben", "Zoe", "Sam", "Ada", "Leo", "Eva", "Max", "Ivy", "Tom", "Amy", "Dan")
ITEMS = ("apples", "books", "coins", "cards", "pens", "eggs", "beads", "stamps", "kg of rice", "liters of milk")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens to the quantity.

    Args:
        kind: ``gain``, ``loss``, ``bags`` (gain of `count` bags of `amount`), ``times``, ``share``, ``used`` (loss of
            `count` lots of `amount`).
        amount: the number in the story; for bags and lots the content of one.
        count: how many bags or lots; 1 otherwise.
        phrase: index of the wording in `SENTENCES`, taken modulo their number.
    """

    kind: str
    amount: int
    count: int
    phrase: int


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A story before it is written down.

    Args:
        name: who the story is about.
        item: what is counted.
        start: the quantity at the beginning.
        events: what happens to it, in order.
    """

    name: str
    item: str
    start: int
    events: tuple[Event, ...]


SENTENCES: dict[str, tuple[str, ...]] = {
    "gain": ("{name} finds {amount} more.", "Then {name} buys {amount} more.", "{name} gets {amount} from a friend."),
    "loss": ("{name} gives away {amount}.", "Then {name} sells {amount}.", "{name} loses {amount}."),
    "bags": ("{name} buys {count} bags with {amount} in each.", "Then {name} gets {count} boxes of {amount}."),
    "used": ("{name} gives {amount} to each of {count} friends.", "On each of {count} days {name} uses {amount}."),
    "times": ("Soon {name} has {amount} times as many.", "The number grows to {amount} times as many."),
    "share": (
        "{name} splits them into {amount} equal parts and keeps one.",
        "{amount} friends share them, {name} is one.",
    ),
}


def make(generator: np.random.Generator, scale: int) -> WordProblem:
    """One story; `scale` 1 keeps every number below 100, each further one adds a digit."""
    limit = 10 ** (scale + 1)
    num_steps = (
        int(generator.integers(2, 4 + scale))
        if scale > 1
        else int(generator.choice([2, 3, 4, 5], p=[0.5, 0.3, 0.15, 0.05]))
    )
    start = value = int(generator.integers(limit // 10, limit - 1))
    if generator.random() < 0.35:
        start = value = int(generator.integers(3, 13))
    events: list[Event] = []
    while num_steps > 0:
        event = _draw_event(generator, value, limit, num_steps)
        events.append(event)
        value = _apply(event, value, compute)[-1]
        num_steps -= 2 if event.kind in ("bags", "used") else 1
    return WordProblem(str(generator.choice(NAMES)), str(generator.choice(ITEMS)), start, tuple(events))


def _draw_event(generator: np.random.Generator, value: int, limit: int, num_steps: int) -> Event:
    phrase = int(generator.integers(0, 6))
    while True:
        kind = str(
            generator.choice(["gain", "loss", "bags", "used", "times", "share"], p=[0.22, 0.3, 0.16, 0.1, 0.1, 0.12])
        )
        count, amount = 1, int(generator.integers(2, max(3, limit // 2)))
        if kind in ("bags", "used"):
            if num_steps < 2:
                continue
            count, amount = int(generator.integers(2, 9)), int(generator.integers(2, 10))
        if kind in ("times", "share"):
            amount = int(generator.integers(2, 10))
        event = Event(kind, amount, count, phrase)
        if kind == "share" and (value % amount or value // amount < 2):
            continue
        if kind == "times" and value > 12 * limit // 100:
            continue
        if 1 <= _apply(event, value, compute)[-1] < limit:
            return event


def _apply(event: Event, value: int, operation: Operation) -> list[int]:
    """Values of the event's steps, the last being the new quantity."""
    match event.kind:
        case "gain":
            return [operation("+", value, event.amount)]
        case "loss":
            return [operation("-", value, event.amount)]
        case "times":
            return [operation("*", value, event.amount)]
        case "share":
            return [operation("/", value, event.amount)]
    lot = operation("*", event.count, event.amount)
    return [lot, operation("+" if event.kind == "bags" else "-", value, lot)]


def question(problem: WordProblem) -> str:
    """The story and what is asked."""
    sentences = [f"{problem.name} has {problem.start} {problem.item}."]
    for event in problem.events:
        wordings = SENTENCES[event.kind]
        wording = wordings[event.phrase % len(wordings)]
        sentences.append(wording.format(name=problem.name, amount=event.amount, count=event.count))
    return " ".join(sentences) + f" How many {problem.item} does {problem.name} have now?"


def solve(problem: WordProblem, operation: Operation) -> tuple[list[str], str]:
    """The worked solution's lines, the answer's line last, and the answer.

    Raises:
        ArithmeticError: a wrong value on the way made a division uneven or the quantity negative.
    """
    signs = {"gain": "+", "loss": "-", "times": "*", "share": "/"}
    value = problem.start
    lines: list[str] = []
    for event in problem.events:
        values = _apply(event, value, operation)
        if len(values) == 2:
            sign = "+" if event.kind == "bags" else "-"
            lines.append(f"That is {event.count}*{event.amount}={values[0]} {problem.item}.")
            lines.append(f"{problem.name} has {value}{sign}{values[0]}={values[1]} {problem.item}.")
        else:
            lines.append(f"{problem.name} has {value}{signs[event.kind]}{event.amount}={values[0]} {problem.item}.")
        value = values[-1]
        if value < 0:
            raise ArithmeticError("a quantity below 0")
    return [*lines, f"#### {value}"], str(value)
