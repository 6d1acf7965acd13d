"""Answers that broke graders: 302 from public bug reports, and our own variants of every kind, right and wrong.

A row has `gold`, `prediction`, `expected` (whether it is right), `kind` and, where they are not the defaults,
`settings`: conventions, or the dataset whose conventions hold.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from pipeline_lib.config import GradingConfig
from pipeline_lib.grading import Conventions, Grade, GradingPool
from pipeline_lib.problems.formats import format_of

GOLDEN = Path(__file__).parent / "golden"
Row = dict[str, Any]


def read_rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]


def conventions_of(row: Row) -> Conventions:
    settings = dict(row.get("settings", {}))
    dataset = settings.pop("dataset", "math")
    return Conventions.of(GradingConfig(**settings), format_of(dataset).grading)


def wrongly_graded(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Wrong answers that were paid, and right ones that were not."""
    by_conventions: dict[Conventions, list[Row]] = defaultdict(list)
    for row in rows:
        by_conventions[conventions_of(row)].append(row)
    paid, refused = [], []
    for conventions, same in by_conventions.items():
        grades: dict[str, Grade] = {}
        with GradingPool(1, conventions=conventions) as pool:
            for place, row in enumerate(same):
                pool.submit(str(place), row["prediction"], row["gold"])
            while pool.num_in_flight:
                grades.update(pool.poll(block=True))
        for place, row in enumerate(same):
            is_correct = grades[str(place)] is Grade.CORRECT
            paid += [row] if is_correct and not row["expected"] else []
            refused += [row] if not is_correct and row["expected"] else []
    return paid, refused


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("grading_reports.jsonl", 0.99), ("grading_variants.jsonl", 0.99)])
def test_no_wrong_answer_is_paid_and_hardly_a_right_one_refused(name: str, share: float) -> None:
    rows = read_rows(name)
    paid, refused = wrongly_graded(rows)
    assert paid == []
    assert len(refused) <= (1 - share) * len(rows), refused


def test_every_kind_has_right_and_wrong_variants() -> None:
    kinds: dict[str, list[bool]] = defaultdict(list)
    for row in read_rows("grading_variants.jsonl"):
        kinds[row["kind"]].append(row["expected"])
    assert len(kinds) >= 40
    assert [kind for kind, expected in kinds.items() if len(expected) < 10 or len(set(expected)) < 2] == []
