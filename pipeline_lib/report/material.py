"""What a report shows besides the records: curves, trees, flipped answers, surroundings; little and bounded.

One idea: all of it fits into one small JSON file that lies beside the run in MLflow, so that the page can be
made again anywhere, by any later version, also where the store of the run is out of reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from pydantic import Field

from pipeline_lib.types import Record

MAX_STEP_CHARS = 600
MAX_QUESTION_CHARS = 1500
MAX_ANSWER_CHARS = 3000
MAX_UPDATES = 2000
CURVES = ("loss", "kl")


class ShownTree(Record):
    """A search tree as drawn: the most visited steps, their texts cut; node 0 is the root."""

    iteration: int
    kind: str = Field(description="Why it was chosen: `rarely right`, `evenly split`, …")
    problem_id: str
    question: str
    gold: str
    num_nodes: int = Field(description="Of the whole tree.")
    parents: tuple[int, ...]
    steps: tuple[str, ...]
    visits: tuple[int, ...]
    values: tuple[float, ...] = Field(description="Mean reward below each node, in [0, 1].")
    scores: tuple[float, ...] = Field(description="Relative correctness; empty where it was not at hand.")
    outcomes: tuple[int, ...] = Field(description="As `Outcome`.")


class ShownAnswer(Record):
    """One greedy answer to a problem."""

    iteration: int
    correct: bool
    grade: str
    answer: str | None = Field(description="The extracted final answer.")
    text: str


class Flip(Record):
    """A test problem whose answer changed between right and wrong."""

    kind: str
    problem_id: str
    question: str
    gold: str
    answers: tuple[ShownAnswer, ...] = Field(description="One per evaluated iteration, the base first.")


class FlipSummary(Record):
    """How one test set's answers moved over the iterations, with a few examples."""

    dataset: str
    num_problems: int
    counts: dict[str, int] = Field(description="Problems by how their answer went; every problem counts once.")
    examples: tuple[Flip, ...]


class KindAccuracy(Record):
    """Greedy answers to the test problems of one kind."""

    dataset: str
    kind: str = Field(description="`level 1`, `steps 3` or a subject.")
    num_problems: int
    num_correct: dict[int, int] = Field(description="By evaluated iteration, 0 being the base.")
    intervals: dict[int, tuple[float, float]] = Field(description="Of the accuracies, 95 %, by iteration.")


class Material(Record):
    """Everything that a report shows besides the configuration and the result."""

    environment: dict[str, str] = Field(default_factory=dict, description="Versions, hardware, commit of the run.")
    finished_at: str = Field(default="", description="ISO time, UTC.")
    histories: dict[int, tuple[dict[str, float], ...]] = Field(default_factory=dict)
    trees: tuple[ShownTree, ...] = ()
    flips: tuple[FlipSummary, ...] = ()
    kinds: tuple[KindAccuracy, ...] = ()
    missing: tuple[str, ...] = Field(default=(), description="What could not be had, and why; one sentence each.")


def shorten(text: str, limit: int) -> str:
    """`text`, cut at `limit` characters with a note of how many are left out.

    Example: ``shorten("abcdef", 4)`` is ``"abcd… (2 more characters)"``.
    """
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def bounded_history(history: Iterable[Mapping[str, float]]) -> tuple[dict[str, float], ...]:
    """Loss and KL of at most `MAX_UPDATES` updates, evenly picked; what is not finite is left out."""
    rows = [{name: update[name] for name in CURVES if math.isfinite(update.get(name, math.nan))} for update in history]
    return tuple(_evenly(rows, MAX_UPDATES))


def _evenly(rows: Sequence[dict[str, float]], limit: int) -> Sequence[dict[str, float]]:
    if len(rows) <= limit:
        return rows
    return [rows[len(rows) * i // limit] for i in range(limit)]
