"""Scores every step of an iteration's trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.config import PipelineConfig
from pipeline_lib.score import score_tree
from pipeline_lib.store import Entry, write_parquet
from pipeline_lib.types import Float64Array, Ref
from tasks.runtime.keys import key_of
from tasks.runtime.stage import Done, open_store, stage
from tasks.search import load_trees

SCORES = "scores.parquet"


def _spec(*, config: PipelineConfig, trees: tuple[Ref, ...], iteration: int) -> dict[str, Any]:
    return {"score": key_of(config.score)}


@stage(_spec, run_name="score {iteration}")
def score_steps(entry: Entry, *, config: PipelineConfig, trees: tuple[Ref, ...], iteration: int) -> Done:
    """Relative correctness of every step (Equation 1), one row per tree."""
    searched = load_trees(trees)
    scores = [score_tree(tree, config.score).tolist() for tree in searched]
    columns = {"problem_id": [tree.problem_id for tree in searched], "scores": scores}
    schema = pa.schema([("problem_id", pa.string()), ("scores", pa.list_(pa.float64()))])
    write_parquet(pa.table(columns, schema=schema), entry.path / SCORES)
    return Done(len(searched))


def load_scores(ref: Ref) -> list[Float64Array]:
    """`[N]` float64 for each tree, in the order of `load_trees`."""
    table = pq.read_table(open_store().open(ref) / SCORES)
    return [np.array(row, dtype=np.float64) for row in table.column("scores").to_pylist()]
