"""Graders side by side on answers from public bug reports: how many are right, how many wrong ones are paid, how fast.

One idea: every grader sees the same texts, one after the other in one worker process, under the same deadline.

1. ``coppice``: ours, under each row's conventions.
2. ``math_verify``: its ``parse`` and ``verify`` as documented.
3. ``mathruler``: the rule-based scorer of the EasyR1 training framework, where it is installed. It evaluates what it
   reads, so it only ever sees these texts.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.grading import PLAIN, importable_by_workers
from benchmarks.measuring import Figure

from pipeline_lib.config import GradingConfig
from pipeline_lib.grading import Conventions, Grade, GradingPool
from pipeline_lib.problems.formats import format_of

REPORTS = Path(__file__).resolve().parents[1] / "golden" / "grading_reports.jsonl"
MATHRULER = "benchmarks.graders:mathruler_verify"
DEADLINE_S = 3.0
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """What one grader made of all rows."""

    num_rows: int
    num_right: int
    num_paid_wrongly: int
    seconds: float

    def as_json(self) -> dict[str, float]:
        return {
            "right_share": round(self.num_right / self.num_rows, 4),
            "wrong_answers_paid": self.num_paid_wrongly,
            "answers_per_s": round(self.num_rows / self.seconds, 1),
        }


def read_reports(path: Path = REPORTS) -> list[Row]:
    """The rows of the file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def graders_figures(rows: Sequence[Row]) -> list[Figure]:
    """Ours on the rows, with the others in the details."""
    records = {"coppice": _record(rows, "math"), "math_verify": _record(rows, PLAIN)}
    if find_spec("mathruler") is not None:
        records["mathruler"] = _record(rows, MATHRULER)
    details: dict[str, object] = {name: record.as_json() for name, record in records.items()}
    ours = records["coppice"]
    return [
        Figure("grading.reports_right_share", ours.num_right / ours.num_rows, 0.99, details=details),
        Figure("grading.reports_paid_wrongly", float(ours.num_paid_wrongly), 0.0, at_least=False),
    ]


def mathruler_verify(prediction: str, gold: str) -> bool:
    """MathRuler as EasyR1's reward calls it."""
    from mathruler.grader import extract_boxed_content, grade_answer

    return bool(grade_answer(extract_boxed_content(prediction), gold))


def _record(rows: Sequence[Row], grader: str) -> Record:
    by_conventions: dict[Conventions, list[Row]] = defaultdict(list)
    for row in rows:
        by_conventions[_conventions_of(row) if grader == "math" else Conventions()].append(row)
    right = paid = 0
    seconds = 0.0
    for conventions, same in by_conventions.items():
        with (
            importable_by_workers(),
            GradingPool(1, deadline_s=DEADLINE_S, conventions=conventions, grader=grader) as pool,
        ):
            _grade(pool, [{"prediction": r"\boxed{2^{x+1}}", "gold": "2^{x}"}])  # the worker has started
            started = time.perf_counter()
            grades = _grade(pool, same)
            seconds += time.perf_counter() - started
        right += sum((grade is Grade.CORRECT) == row["expected"] for grade, row in zip(grades, same, strict=True))
        paid += sum(grade is Grade.CORRECT and not row["expected"] for grade, row in zip(grades, same, strict=True))
    return Record(len(rows), right, paid, seconds)


def _conventions_of(row: Row) -> Conventions:
    settings = dict(row.get("settings", {}))
    dataset = settings.pop("dataset", "math")
    return Conventions.of(GradingConfig(**settings), format_of(dataset).grading)


def _grade(pool: GradingPool, rows: Sequence[Row]) -> list[Grade]:
    for place, row in enumerate(rows):
        pool.submit(str(place), row["prediction"], row["gold"])
    grades: dict[str, Grade] = {}
    while pool.num_in_flight:
        grades.update(pool.poll(block=True))
    return [grades[str(place)] for place in range(len(rows))]
