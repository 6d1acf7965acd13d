"""Audits an iteration's scores before any training."""

from __future__ import annotations

from typing import Any

from pipeline_lib.config import PipelineConfig
from pipeline_lib.problems.tiny import is_tiny, steps_are_right
from pipeline_lib.score.score_audit import audit_scores
from pipeline_lib.store import Entry, read_json, write_json
from pipeline_lib.types import AuditReport, Ref
from tasks.runtime.artifacts import show_markdown, show_table
from tasks.runtime.keys import key_of
from tasks.runtime.stage import Done, open_store, stage
from tasks.score import load_scores
from tasks.search import load_trees

AUDIT = "audit.json"


def _spec(
    *, config: PipelineConfig, trees: tuple[Ref, ...], scores: Ref, iteration: int, earlier: tuple[Ref, ...]
) -> dict[str, Any]:
    return {"audit": key_of(config.audit), "remedied": bool(earlier)}


@stage(_spec, run_name="audit {iteration}")
def audit_iteration(
    entry: Entry,
    *,
    config: PipelineConfig,
    trees: tuple[Ref, ...],
    scores: Ref,
    iteration: int,
    earlier: tuple[Ref, ...],
) -> Done:
    """Writes the audit's report; in the tiny world the oracle says how well scores find wrong steps.

    Args:
        entry: filled with ``audit.json``.
        config: the thresholds, and the dataset.
        trees: what is audited, shard by shard.
        scores: of these trees.
        iteration: names what is shown.
        earlier: the trees before the remedy, shard by shard; none where there was none.
    """
    report = audit_scores(
        load_trees(trees),
        load_scores(scores),
        config.audit,
        earlier=load_trees(earlier),
        step_is_right=steps_are_right if is_tiny(config.problems.dataset) else None,
    )
    write_json(entry.path / AUDIT, report)
    _show(report, iteration)
    return Done(report.num_problems)


def load_audit(ref: Ref) -> AuditReport:
    """The report that `audit_iteration` wrote."""
    return AuditReport.model_validate(read_json(open_store().open(ref) / AUDIT))


def _show(report: AuditReport, iteration: int) -> None:
    """Artifacts for the Prefect UI: the verdict, and the histogram as a table with bars."""
    verdict = "passed" if report.passed else "stopped"
    show_markdown(
        f"**Audit of iteration {iteration}: {verdict}.** {report.reason}\n\n{report.advice}",
        key="audit",
        description=f"Iteration {iteration}: {verdict}",
    )
    edges, counts = report.histogram.edges, report.histogram.counts
    largest = max(counts, default=0) or 1
    rows = [
        {"from": round(low, 3), "to": round(high, 3), "steps": count, "": "█" * round(40 * count / largest)}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    show_table(rows, key="score-histogram", description=f"Scores of iteration {iteration}")
