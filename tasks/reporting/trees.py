"""The few trees of an iteration that are worth a look, read from the store with their problems and scores.

Only they are read whole: of the other thousands, the roots.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow.parquet as pq

from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.report import render_plain
from pipeline_lib.report.material import ShownTree
from pipeline_lib.report.page.tree_pictures import show_tree
from pipeline_lib.report.tree_choice import RootCount, most_informative_trees, one_tree_of_each_kind
from pipeline_lib.search import read_roots, read_trees_parquet
from pipeline_lib.tracking.tree_traces import TreeTrace, trace_tree
from pipeline_lib.types import Float64Array, IterationRecord, Problem, SearchTree
from tasks.problems import PROBLEMS
from tasks.runtime.stage import open_store, stage_refs
from tasks.score import SCORES
from tasks.search import TREES

MAX_TRACES = 5


def trees_page(record: IterationRecord) -> dict[str, str]:
    """``trees.html`` for MLflow's artifact viewer: a handful of trees, if any was searched."""
    trees = shown_trees(record)
    return {"trees.html": render_plain(f"Iteration {record.index}: search trees", trees=trees)} if trees else {}


def shown_trees(record: IterationRecord) -> list[ShownTree]:
    """One tree of each kind as a picture; none when the iteration searched nothing."""
    chosen = one_tree_of_each_kind(_roots(record))
    found = _read(record, chosen.values())
    return [
        show_tree(tree, scores, problem, iteration=record.index, kind=kind)
        for kind, (tree, problem, scores) in zip(chosen, found, strict=True)
    ]


def traced_trees(record: IterationRecord) -> list[TreeTrace]:
    """The trees that taught most as traces, these first; none when the iteration searched nothing."""
    chosen = most_informative_trees(_roots(record), MAX_TRACES)
    return [trace_tree(tree, problem, scores) for tree, problem, scores in _read(record, chosen)]


def _roots(record: IterationRecord) -> list[RootCount]:
    store = open_store()
    return [root for ref in stage_refs(record, "search") for root in read_roots(store.open(ref) / TREES)]


def _read(record: IterationRecord, wanted: Collection[str]) -> list[tuple[SearchTree, Problem, Float64Array | None]]:
    """Tree, problem and scores, where there are any, by problem id in the order of `wanted`."""
    if not wanted:
        return []
    store = open_store()
    files = [store.open(ref) / TREES for ref in stage_refs(record, "search")]
    trees = {tree.problem_id: tree for file in files for tree in read_trees_parquet(file, wanted)}
    asked = read_problems(store.open(record.refs["problems"]) / PROBLEMS)
    problems = {problem.problem_id: problem for problem in asked if problem.problem_id in wanted}
    file = store.open(record.refs["score"]) / SCORES
    rows = pq.read_table(file, filters=[("problem_id", "in", sorted(wanted))]).to_pylist()
    scores = {row["problem_id"]: np.array(row["scores"], dtype=np.float64) for row in rows}
    return [(trees[name], problems[name], scores.get(name)) for name in wanted]
