"""Majority votes over what the grader holds equal: 0.5, 1/2 and 2/4 are three votes for one answer.

One idea: the grader that judged the answers also counts the votes. One sample's text is graded with another
sample's answer as its gold, under the run's own conventions or by the user's own verifier, which get just what they
get at any other time. The real gold is not looked at: a vote must not know it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline_lib.evaluation.statistics import majority_index
from pipeline_lib.grading.grader import Grader
from pipeline_lib.types import Grade


def winning_samples(
    texts: Sequence[Sequence[str]], answers: Sequence[Sequence[str | None]], grader: Grader
) -> list[int | None]:
    """For each problem the index of the first sample that gave the commonest answer; None when none gave any.

    A sample votes for the first answer before it that equals its own; ties go to what came first. Equal strings are
    not graded, so a problem costs at most ``d (d − 1) / 2`` comparisons, d its distinct answers.

    Args:
        texts: whole texts of each problem's samples.
        answers: the final answer extracted from each text, None where there is none.
        grader: compares; nothing else may be in flight on it.
    """
    counts = [_Count(*problem) for problem in zip(texts, answers, strict=True)]
    for turn in range(max((len(count.distinct) for count in counts), default=0)):
        for place, count in enumerate(counts):
            for rival, gold in enumerate(count.firsts if turn < len(count.distinct) else ()):
                grader.submit(f"{place}/{turn}/{rival}", count.text_of(turn), gold)
        equal = {key for key, grade in _finished(grader) if grade is Grade.CORRECT}
        for place, count in enumerate(counts):
            if turn < len(count.distinct):
                count.join(turn, {rival for rival in range(len(count.firsts)) if f"{place}/{turn}/{rival}" in equal})
    return [count.winner() for count in counts]


class _Count:
    """One problem's votes as they are counted: each distinct answer joins an earlier one, or stands for itself."""

    def __init__(self, texts: Sequence[str], answers: Sequence[str | None]) -> None:
        self._texts, self._answers = texts, answers
        self.distinct = list(dict.fromkeys(answer for answer in answers if answer is not None))
        self.firsts: list[str] = []
        self._joined: dict[str | None, int | None] = {None: None}

    def text_of(self, turn: int) -> str:
        """The text of the first sample that gave this answer."""
        return self._texts[self._answers.index(self.distinct[turn])]

    def join(self, turn: int, equal: set[int]) -> None:
        """Counts an answer with the earliest of `equal`, places in `firsts`; without any it is a new first."""
        answer = self.distinct[turn]
        if not equal:
            self.firsts.append(answer)
        self._joined[answer] = min(equal, default=len(self.firsts) - 1)

    def winner(self) -> int | None:
        return majority_index([self._joined[answer] for answer in self._answers])


def _finished(grader: Grader) -> list[tuple[str, Grade]]:
    """Everything that is in flight, once it is done."""
    finished: list[tuple[str, Grade]] = []
    while grader.num_in_flight:
        finished += grader.poll(block=True)
    return finished
