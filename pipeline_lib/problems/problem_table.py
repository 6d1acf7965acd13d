"""Problems on disk: one Parquet row each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.store import write_parquet
from pipeline_lib.types import Problem

SCHEMA = pa.schema([(name, pa.string()) for name in ("problem_id", "question", "answer", "dataset", "metadata")])


def write_problems(problems: Sequence[Problem], path: Path) -> None:
    """Writes problems in order; equal problems give equal bytes."""
    rows = [
        {
            "problem_id": p.problem_id,
            "question": p.question,
            "answer": p.answer,
            "dataset": p.dataset,
            "metadata": json.dumps(dict(p.metadata), sort_keys=True),
        }
        for p in problems
    ]
    write_parquet(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def read_problems(path: Path) -> list[Problem]:
    """What `write_problems` wrote."""
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    return [Problem(**{**row, "metadata": json.loads(row["metadata"])}) for row in rows]
