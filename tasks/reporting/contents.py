"""What an iteration leaves in MLflow besides its numbers: files, figures, curves, a few trees, the adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.report import figures_of, render_plain
from pipeline_lib.report.figures import Histories
from pipeline_lib.report.metrics import update_points
from pipeline_lib.tracking import Contents
from pipeline_lib.tracking.tree_traces import TreeTrace, choose_trees, trace_tree
from pipeline_lib.types import IterationRecord, Ref
from tasks.audit import AUDIT
from tasks.problems import PROBLEMS
from tasks.reporting.gather import trees_page
from tasks.runtime.policies import adapter_folder
from tasks.runtime.stage import open_store
from tasks.score import SCORES, load_scores
from tasks.search import TREES, load_trees
from tasks.train import load_history

Stages = Mapping[str, tuple[Ref, ...]]


def contents_of(record: IterationRecord, stages: Stages, earlier: Sequence[IterationRecord]) -> Contents:
    """Everything of one iteration, read from the store.

    Args:
        record: of the iteration.
        stages: its references by stage.
        earlier: records of the iterations before, base first; figures show the way up to here.
    """
    store = open_store()
    artifacts = {f"search/{i}": store.open(ref) / TREES for i, ref in enumerate(stages.get("search", ()))}
    for name, file in (("score", SCORES), ("audit", AUDIT)):
        if name in stages:
            artifacts[name] = store.open(stages[name][0]) / file
    history = histories_of([record])
    return Contents(
        artifacts=artifacts,
        texts=figures_page(f"Iteration {record.index}", [*earlier, record], history, of=record) | trees_page(record),
        curves=[point for updates in history.values() for point in update_points(updates)],
        traces=_traces(stages),
        adapter=adapter_folder(stages["train"][0]) if "train" in stages else None,
        parent=earlier[-1].policy if earlier else None,
    )


def figures_page(
    title: str, records: Sequence[IterationRecord], histories: Histories, of: IterationRecord | None = None
) -> dict[str, str]:
    """``figures.html`` with every figure that can be drawn; with `of`, the scores are those of this iteration alone."""
    figures = figures_of(records, histories)
    if of is not None:
        others = {f"scores-{record.index}" for record in records if record.index != of.index}
        figures = {name: figure for name, figure in figures.items() if name not in others}
    return {"figures.html": render_plain(title, figures=figures.values())} if figures else {}


def histories_of(records: Sequence[IterationRecord]) -> dict[int, list[dict[str, float]]]:
    """Iteration to one row of metrics per update, for those that trained."""
    return {record.index: load_history(record.refs["train"]) for record in records if "train" in record.refs}


def _traces(stages: Stages) -> list[TreeTrace]:
    """The few trees of an iteration that tell most."""
    if "score" not in stages:
        return []
    trees, scores = load_trees(stages["search"]), load_scores(stages["score"][0])
    folder = open_store().open(stages["problems"][0])
    problems = {problem.problem_id: problem for problem in read_problems(folder / PROBLEMS)}
    return [trace_tree(trees[i], problems[trees[i].problem_id], scores[i]) for i in choose_trees(trees)]
