"""Whether a registered adapter takes the champion's place: a pure function of what two versions scored.

One idea: `champion` is what deployments load, so it moves only on evidence: to a version that its own run's gate
chose and that answers more problems of the very same validation set. Accuracies on different problems, under
different grading or with answers of different length are not compared; a person may still move the alias by hand
(`coppice promote`). A decision about a version is made once: a rerun does not undo what a person did since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from pipeline_lib.types import EvalReport, IterationRecord, Promotion, Record

MAX_MOVES = 200
PROMOTED, ROLLED_BACK = "promoted", "rolled back"


@dataclass(frozen=True, slots=True)
class ValidationScore:
    """What a registered version scored on its run's validation set.

    Args:
        version: the version's number in the registry.
        dataset: the dataset whose validation split was asked.
        accuracy: greedy, in [0, 1]; of all problems, so ignored answers are wrong here.
        num_problems: how many problems the split holds.
        yardstick: equal for two versions that can be compared, see `EvalReport`; "" is equal to nothing.
    """

    version: str
    dataset: str
    accuracy: float
    num_problems: int
    yardstick: str

    @classmethod
    def of(cls, version: str, report: EvalReport) -> ValidationScore:
        """The score that `report`, of a validation split, gives to `version`."""
        accuracy = report.num_correct / report.num_problems
        return cls(version, report.dataset, accuracy, report.num_problems, report.yardstick)

    def __str__(self) -> str:
        return f"{self.accuracy:.1%} of {self.num_problems} validation problems of {self.dataset}"


class ChampionMove(Record):
    """One move of the alias `champion`; the registered model keeps the list of them."""

    at: str = Field(description="ISO time, UTC.")
    action: str = Field(description="`promoted` or `rolled back`.")
    version: str = Field(description="The champion from then on.")
    previous: str | None = Field(description="The champion before; None when there was none.")
    reason: str


def decide_promotion(challenger: ValidationScore, champion: ValidationScore | None) -> Promotion:
    """Whether `challenger`, which its run's gate chose, becomes champion.

    It does when there is no champion, or when it scored more than the champion by the same yardstick.

    Args:
        challenger: what the version that the gate chose scored.
        champion: what the champion of the moment scored; None when there is none.

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


def champions_before(moves: Sequence[ChampionMove], current: str | None) -> list[str]:
    """The champions that a rollback can go back to, the latest last.

    They form a stack: a promotion pushes the champion of the moment, a rollback pops one. When `current` is not
    where the moves lead, somebody moved the alias outside Coppice; the champion that the moves led to is pushed too.

    Args:
        moves: all on record, the oldest first.
        current: the champion now; None when there is none.
    """
    earlier: list[str] = []
    last: str | None = None
    for move in moves:
        if move.action == PROMOTED:
            earlier += [move.previous] if move.previous is not None else []
        elif earlier:
            earlier.pop()
        last = move.version
    if last is not None and current is not None and last != current:
        earlier.append(last)
    return [version for version in earlier if version != current]


def read_moves(tags: Mapping[str, str], name: str) -> list[ChampionMove]:
    """The list that `write_moves` wrote into the tag `name`; empty without it."""
    return [ChampionMove.model_validate(move) for move in json.loads(tags.get(name, "[]"))]


def write_moves(moves: Sequence[ChampionMove]) -> str:
    """The latest moves as JSON; older ones go, so that the text stays within a tag."""
    return json.dumps([move.model_dump() for move in moves[-MAX_MOVES:]])
