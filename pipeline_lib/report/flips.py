"""Problems whose answer flipped between right and wrong as the iterations went by.

One idea: the accuracy hides how much moves below it; every problem is one of six stories, which are counted,
and the three in which something was learned or lost are shown.
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
    bounded,
)
from pipeline_lib.types import Grade, Problem

EXAMPLES_PER_KIND = 2
LEARNED, FORGOTTEN, LOST_AGAIN = "wrong, then right", "right, then wrong", "wrong, right, wrong again"
SHOWN_KINDS = (LEARNED, FORGOTTEN, LOST_AGAIN)
OTHER_KINDS = ("right, wrong, right again", "always right", "always wrong")


class Answer(Protocol):
    """What `evaluation.Prediction` has."""

    @property
    def problem_id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def grade(self) -> Grade: ...
    @property
    def answer(self) -> str | None: ...


def summarise_flips(
    dataset: str, problems: Mapping[str, Problem], answers: Mapping[int, Sequence[Answer]]
) -> FlipSummary:
    """Every problem counted by its story from the first iteration to the last, and the first few of three stories.

    Args:
        dataset: shown.
        problems: by problem id; one that is missing is counted, not shown.
        answers: by iteration; problems that some iteration lacks are left out.
    """
    by_problem = {index: {answer.problem_id: answer for answer in given} for index, given in sorted(answers.items())}
    common = sorted(set.intersection(*(set(given) for given in by_problem.values()))) if by_problem else []
    histories = {name: {index: given[name] for index, given in by_problem.items()} for name in common}
    kinds = {name: story([_is_right(a) for a in history.values()]) for name, history in histories.items()}
    examples = [
        _flip(kind, problems[name], histories[name])
        for kind in SHOWN_KINDS
        for name in [name for name in common if kinds[name] == kind and name in problems][:EXAMPLES_PER_KIND]
    ]
    counts = Counter(kinds.values())
    return FlipSummary(
        dataset=dataset,
        num_problems=len(common),
        counts={kind: counts[kind] for kind in (*SHOWN_KINDS, *OTHER_KINDS)},
        examples=tuple(examples),
    )


def story(right: Sequence[bool]) -> str:
    """What became of one problem, from its first answer to its last.

    Example: ``story([False, True, False])`` is ``"wrong, right, wrong again"``.
    """
    first, last = right[0], right[-1]
    if first != last:
        return LEARNED if last else FORGOTTEN
    if all(right):
        return "always right"
    if not any(right):
        return "always wrong"
    return "right, wrong, right again" if first else LOST_AGAIN


def _is_right(answer: Answer) -> bool:
    return answer.grade is Grade.CORRECT


def _flip(kind: str, problem: Problem, history: Mapping[int, Answer]) -> Flip:
    return Flip(
        kind=kind,
        problem_id=problem.problem_id,
        question=bounded(problem.question, MAX_QUESTION_CHARS),
        gold=bounded(problem.answer, MAX_STEP_CHARS),
        answers=tuple(
            ShownAnswer(
                iteration=index,
                correct=_is_right(answer),
                grade=str(answer.grade),
                answer=None if answer.answer is None else bounded(answer.answer, MAX_STEP_CHARS),
                text=bounded(answer.text, MAX_ANSWER_CHARS),
            )
            for index, answer in history.items()
        ),
    )
