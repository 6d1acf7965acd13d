"""Problems whose answer flipped between right and wrong as the iterations went by.

The accuracy hides how much moves below it. By its first, last and other answers every problem is of one of six
kinds; the kinds are counted, and a few problems are shown of the three in which something was learned or lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from pipeline_lib.report.material import (
    MAX_ANSWER_CHARS,
    MAX_QUESTION_CHARS,
    MAX_STEP_CHARS,
    Flip,
    FlipSummary,
    ShownAnswer,
    shorten,
)
from pipeline_lib.types import Grade, Problem

EXAMPLES_PER_KIND = 2
LEARNED, FORGOTTEN, LOST_AGAIN = "wrong, then right", "right, then wrong", "wrong, right, wrong again"
SHOWN_KINDS = (LEARNED, FORGOTTEN, LOST_AGAIN)
OTHER_KINDS = ("right, wrong, right again", "always right", "always wrong")


class GradedAnswer(Protocol):
    """A graded answer to one problem; `evaluation.Prediction` is one."""

    @property
    def problem_id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def grade(self) -> Grade: ...
    @property
    def answer(self) -> str | None: ...


def summarise_flips(
    dataset: str, problems: Mapping[str, Problem], answers: Mapping[int, Sequence[GradedAnswer]]
) -> FlipSummary:
    """Every problem counted by its kind of history, and the first few of the kinds in `SHOWN_KINDS`.

    Args:
        dataset: name of the test set, for the page.
        problems: by problem id; one that is missing is counted, not shown.
        answers: by iteration; problems that some iteration lacks are left out.
    """
    by_problem = {index: {answer.problem_id: answer for answer in given} for index, given in sorted(answers.items())}
    common = sorted(set.intersection(*(set(given) for given in by_problem.values()))) if by_problem else []
    histories = {name: {index: given[name] for index, given in by_problem.items()} for name in common}
    kinds = {name: flip_kind([_is_right(a) for a in history.values()]) for name, history in histories.items()}
    counts = Counter(kinds.values())
    shown: list[str] = []
    for kind in SHOWN_KINDS:
        shown += [name for name in common if kinds[name] == kind and name in problems][:EXAMPLES_PER_KIND]
    return FlipSummary(
        dataset=dataset,
        num_problems=len(common),
        counts={kind: counts[kind] for kind in (*SHOWN_KINDS, *OTHER_KINDS)},
        examples=tuple(_flip(kinds[name], problems[name], histories[name]) for name in shown),
    )


def flip_kind(right: Sequence[bool]) -> str:
    """The kind that one problem is of: how its answers went from the first iteration to the last.

    Args:
        right: whether each answer was right, at least one.

    Example: ``flip_kind([False, True, False])`` is ``"wrong, right, wrong again"``.
    """
    first, last = right[0], right[-1]
    if first != last:
        return LEARNED if last else FORGOTTEN
    if all(right):
        return "always right"
    if not any(right):
        return "always wrong"
    return "right, wrong, right again" if first else LOST_AGAIN


def _is_right(answer: GradedAnswer) -> bool:
    return answer.grade is Grade.CORRECT


def _flip(kind: str, problem: Problem, history: Mapping[int, GradedAnswer]) -> Flip:
    return Flip(
        kind=kind,
        problem_id=problem.problem_id,
        question=shorten(problem.question, MAX_QUESTION_CHARS),
        gold=shorten(problem.answer, MAX_STEP_CHARS),
        answers=tuple(
            ShownAnswer(
                iteration=index,
                correct=_is_right(answer),
                grade=str(answer.grade),
                answer=None if answer.answer is None else shorten(answer.answer, MAX_STEP_CHARS),
                text=shorten(answer.text, MAX_ANSWER_CHARS),
            )
            for index, answer in history.items()
        ),
    )
