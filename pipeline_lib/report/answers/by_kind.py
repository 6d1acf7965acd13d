"""Accuracy on each kind of problem apart: MATH's levels and subjects, the steps of a generated problem.

A set that is easy on the whole may gain on its easiest problems alone; one number does not tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline_lib.report.answers.flips import GradedAnswer
from pipeline_lib.report.material import KindAccuracy
from pipeline_lib.types import Grade, Problem

MAX_KINDS = 12  # of one column; one with more is no grouping but a name


def accuracy_by_kind(
    dataset: str,
    problems: Mapping[str, Problem],
    answers: Mapping[int, Sequence[GradedAnswer]],
    *,
    interval: Callable[[int, int], tuple[float, float]],
) -> tuple[KindAccuracy, ...]:
    """Right answers on each value of each column of the problems' metadata that tells them apart.

    Args:
        dataset: name of the test set.
        problems: by problem id.
        answers: by iteration; a problem that some iteration lacks is left out.
        interval: of an accuracy, from right answers and problems.

    Returns:
        by column, then value; nothing of a column with one value or with more than `MAX_KINDS`.
    """
    right = {
        index: {answer.problem_id: answer.grade is Grade.CORRECT for answer in given}
        for index, given in sorted(answers.items())
    }
    common = set.intersection(set(problems), *(set(given) for given in right.values())) if right else set()
    found: list[KindAccuracy] = []
    for column in sorted({column for name in common for column in problems[name].metadata}):
        of_value: dict[str, list[str]] = {}
        for name in sorted(common):
            if value := problems[name].metadata.get(column, ""):
                of_value.setdefault(value, []).append(name)
        if not 1 < len(of_value) <= MAX_KINDS:
            continue
        for value, names in sorted(of_value.items(), key=_place):
            counts = {index: sum(given[name] for name in names) for index, given in right.items()}
            kind = f"{column} {value}" if column not in value.lower() else value
            intervals = {index: interval(count, len(names)) for index, count in counts.items()}
            found.append(
                KindAccuracy(
                    dataset=dataset, kind=kind, num_problems=len(names), num_correct=counts, intervals=intervals
                )
            )
    return tuple(found)


def _place(item: tuple[str, list[str]]) -> tuple[int, str]:
    """Numbers by size, 10 behind 9."""
    value, _ = item
    return (int(value) if value.isdecimal() else 0), value
