"""The golden corpus: answers as a model writes them, with the grade that a careful reader gives.

A row has `gold`, `prediction`, `grade`, `kind` and, where they are not the defaults, `conventions`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline_lib.grading import Conventions, Grade, GradingPool

CORPUS = Path(__file__).parent / "golden" / "grading_corpus.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]


def test_the_corpus_is_large_mixed_and_without_repetitions() -> None:
    assert len(ROWS) >= 400
    assert len({json.dumps(row) for row in ROWS}) == len(ROWS)
    counts = Counter(row["grade"] for row in ROWS)
    assert counts["correct"] <= 0.6 * len(ROWS)
    assert len({row["kind"] for row in ROWS}) >= 30


@pytest.mark.slow
def test_the_corpus_is_graded_as_a_careful_reader_would_and_nothing_wrong_is_called_correct() -> None:
    grades: dict[str, Grade] = {}
    for conventions in {json.dumps(row.get("conventions", {})) for row in ROWS}:
        with GradingPool(1, conventions=Conventions(**json.loads(conventions))) as pool:
            for number, row in enumerate(ROWS):
                if json.dumps(row.get("conventions", {})) == conventions:
                    pool.submit(str(number), row["prediction"], row["gold"])
            while pool.num_in_flight:
                grades.update(pool.poll(block=True))
    missed = [(row, grades[str(i)].value) for i, row in enumerate(ROWS) if grades[str(i)] != row["grade"]]
    assert [row for row, grade in missed if grade == Grade.CORRECT] == []
    assert len(missed) <= 0.01 * len(ROWS), missed
