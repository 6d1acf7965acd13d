"""What an iteration leaves in MLflow besides its numbers: files, figures, curves, a few trees, the adapter."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline_lib.report import figures_of, render_plain
from pipeline_lib.report.figures import Histories
from pipeline_lib.report.metrics import update_points
from pipeline_lib.tracking import IterationContents
from pipeline_lib.types import IterationRecord, PolicyRef
from tasks.audit import AUDIT
from tasks.reporting.trees import traced_trees, trees_page
from tasks.runtime.policies import adapter_folder
from tasks.runtime.stage import open_store, stage_refs
from tasks.score import SCORES
from tasks.search import TREES
from tasks.train import load_history


def contents_of(record: IterationRecord, earlier: Sequence[IterationRecord]) -> IterationContents:
    """Everything of one iteration, read from the store.

    Args:
        record: the iteration's; it refers to what the stages made.
        earlier: records of the iterations before, base first; figures show the way up to here.
    """
    store = open_store()
    artifacts = {f"search/{i}": store.open(ref) / TREES for i, ref in enumerate(stage_refs(record, "search"))}
    for name, file in (("score", SCORES), ("audit", AUDIT)):
        if name in record.refs:
            artifacts[name] = store.open(record.refs[name]) / file
    history = histories_of([record])
    return IterationContents(
        artifacts=artifacts,
        texts=figures_page(f"Iteration {record.index}", [*earlier, record], history, of=record) | trees_page(record),
        curves=[point for updates in history.values() for point in update_points(updates)],
        traces=traced_trees(record),
        adapter=adapter_folder(record.refs["train"]) if "train" in record.refs else None,
        parent=_parent(record, earlier),
    )


def _parent(record: IterationRecord, earlier: Sequence[IterationRecord]) -> PolicyRef | None:
    """The policy that it was trained from; None for the base."""
    return next((before.policy for before in earlier if before.index == record.parent), None)


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
