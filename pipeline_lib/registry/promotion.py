"""Whether a registered adapter takes the champion's place: a pure function of what two versions scored.

One idea: `champion` is what deployments load, so it moves only forward, and only on evidence: to a version that
its own run's gate chose, that answers more problems of the very same validation set. Two accuracies on different
problems, under different grading or with answers of different length, are not compared; a person may do so
(`coppice promote`). A decision about a version is made once: a rerun does not undo what a person did since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline_lib.types import EvalReport, IterationRecord, Promotion, Record

MAX_EVENTS = 200
PROMOTED, ROLLED_BACK = "promoted", "rolled back"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a version scored on its run's validation set.

    Args:
        version: in the registry.
        dataset: whose validation split.
        accuracy: greedy, in [0, 1].
        num_problems: of the split.
        yardstick: equal for two versions that can be compared, see `EvalReport`; "" is equal to nothing.
    """

    version: str
    dataset: str
    accuracy: float
    num_problems: int
    yardstick: str

    @classmethod
    def of(cls, version: str, report: EvalReport) -> Standing:
        """The standing that a validation report gives."""
        return cls(version, report.dataset, report.accuracy, report.num_problems, report.yardstick)

    def __str__(self) -> str:
        return f"{self.accuracy:.1%} of {self.num_problems} validation problems of {self.dataset}"


class Event(Record):
    """One move of the alias `champion`; the registered model keeps the list of them."""

    at: str
    action: str
    version: str
    previous: str | None
    reason: str


def decide_promotion(challenger: Standing, champion: Standing | None) -> Promotion:
    """Whether `challenger`, which its run's gate chose, becomes champion.

    It does when there is no champion, or when it scored more than the champion by the same yardstick.

    Args:
        challenger: the gate's choice.
        champion: the registered one, None when there is none.

    Example: 0.79 against 0.75 by one yardstick is promoted; 0.75 against 0.75, or by two yardsticks, is not.
    """
    if champion is None:
        reason = f"the first champion: {challenger}"
        return Promotion(promoted=True, version=challenger.version, reason=reason)
    against = f"version {champion.version}"
    if champion.version == challenger.version:
        verdict, reason = False, f"{against} is champion already"
    elif not challenger.yardstick or challenger.yardstick != champion.yardstick:
        verdict = False
        reason = (
            f"{against} stays champion: it was measured on other validation problems, or graded otherwise; "
            f"`coppice promote --version {challenger.version}` moves the alias by hand"
        )
    else:
        verdict = challenger.accuracy > champion.accuracy
        comparison = f"{challenger}, against {champion.accuracy:.1%}"
        reason = comparison + (f" for {against}" if verdict else f" for {against}, which stays champion")
    return Promotion(promoted=verdict, version=challenger.version, previous=champion.version, reason=reason)


def validation_report(record: IterationRecord) -> EvalReport | None:
    """The report that the gate read; None for an iteration that was not evaluated."""
    return next((report for report in record.evaluations if report.split == "validation"), None)


def champions_before(events: Sequence[Event], current: str | None) -> list[str]:
    """The champions that a rollback can go back to, the latest last.

    A promotion lays the champion of the moment on the pile, a rollback takes one off. When `current` is
    not where the events lead, somebody moved the alias past us: the pile is then what the events left.
    """
    pile: list[str] = []
    top: str | None = None
    for event in events:
        if event.action == PROMOTED:
            pile += [event.previous] if event.previous is not None else []
        elif pile:
            pile.pop()
        top = event.version
    if top is not None and current is not None and top != current:
        pile.append(top)
    return [version for version in pile if version != current]


def read_events(tags: Mapping[str, str], name: str) -> list[Event]:
    """The list that `write_events` wrote into the tag `name`; empty without it."""
    return [Event.model_validate(event) for event in json.loads(tags.get(name, "[]"))]


def write_events(events: Sequence[Event]) -> str:
    """The latest events as JSON; older ones go, so that the text stays within a tag."""
    return json.dumps([event.model_dump() for event in events[-MAX_EVENTS:]])
