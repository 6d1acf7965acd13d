"""Descriptions of runs and registered versions: the Markdown that MLflow shows on their pages.

A reader who opens a run sees the result before any chart: the table, the decision, the reason, and where to go on.
Links within MLflow are relative to its page, so they hold behind any address.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline_lib.report.tables import (
    average_name,
    format_accuracy,
    records_table,
    tested_datasets,
    tested_reports,
)
from pipeline_lib.types import GateDecision, IterationRecord, Promotion, RunResult

MAX_CHARS = 7900  # MLflow keeps 8,000 of a tag
CAPTION = (
    "Greedy accuracy and avg@n, the mean of n samples, in % ± half the 95 % interval; the gate reads validation only."
)


def run_note(
    records: Sequence[IterationRecord],
    decision: GateDecision,
    *,
    result: RunResult | None = None,
    origin: str = "",
    model: str = "",
) -> str:
    """A pipeline run's description: table, decision, reason.

    Args:
        records: the base first, then the iterations in order.
        decision: the gate's latest.
        result: of the finished run; None while it goes on.
        origin: a line of Markdown about where the run came from, see `tracking.run_tracker`.
        model: name of the registered model.
    """
    champion = "the base" if decision.champion == 0 else f"iteration {decision.champion}"
    lines = [f"**{'Champion' if result else 'Best so far'}: {champion}** ({decision.reason})", ""]
    lines += [*results_markdown(records, decision), "", CAPTION, ""]
    lines.append(f"**Stopped because:** {result.stopped_because}" if result else "The run goes on.")
    if result is not None and result.promotion is not None:
        lines += ["", f"**Registry:** {promotion_line(result.promotion, model)}"]
    return _cut("\n".join([*lines, "", origin]))


def iteration_note(record: IterationRecord, *, parent: str, version: str | None = None, model: str = "") -> str:
    """An iteration's description: its row, the audit's reason, its version.

    Args:
        record: the iteration that is described.
        parent: Markdown link to the pipeline run.
        version: number of its adapter's version in the registry; None for the base and for what was not trained.
        model: name of the registered model.
    """
    lines = results_markdown([record], None)
    lines += ["", CAPTION]
    if record.parent is not None:
        lines += ["", f"Started from {f'iteration {record.parent}' if record.parent else 'the base'}."]
    if record.audit is not None:
        lines += ["", f"**Audit {'passed' if record.audit.passed else 'stopped'}:** {record.audit.reason}"]
    if version is not None:
        lines += ["", f"**Registered** as [{model} version {version}]({version_link(model, version)})"]
    return _cut("\n".join([*lines, "", parent]))


def version_note(record: IterationRecord, parent_version: str | None, tags: Mapping[str, str]) -> str:
    """A registered version's description: scores, origin.

    Args:
        record: the iteration that made the version.
        parent_version: the version that it was trained from; None for the base.
        tags: the version's; the flow run's address and id are read.
    """
    policy = record.policy
    origin = f"version {parent_version}" if parent_version else "the base"
    lines = [f"Iteration {record.index}, trained from {origin} on `{policy.base_model}`.", ""]
    lines += ["| dataset | split | accuracy |", "|---|---|---|"]
    lines += [f"| {r.dataset} | {r.split} | {format_accuracy(r)} |" for r in record.evaluations]
    if "kl" in record.train:
        lines += ["", f"KL to its parent: {record.train['kl']:.4f} nats per scored token."]
    url, flow_run = tags.get("prefect.flow_run_url"), tags.get("prefect.flow_run_id")
    if url:
        lines += ["", f"[Prefect flow run]({url})"]
    elif flow_run:
        lines += ["", f"Prefect flow run `{flow_run}`"]
    return _cut("\n".join(lines))


def promotion_line(promotion: Promotion, model: str) -> str:
    """What became of the alias `champion`, one sentence.

    Example: ``coppice-tiny@champion is version 3 now, instead of 1: 79.0% of 300 …``
    """
    if promotion.promoted:
        instead = f", instead of {promotion.previous}" if promotion.previous else ""
        return f"{model}@champion moved to version {promotion.version}{instead}: {promotion.reason}"
    stays = f"stays at version {promotion.previous}" if promotion.previous else "points nowhere"
    other = promotion.version not in (None, promotion.previous)
    candidate = f" (version {promotion.version} is candidate)" if other else ""
    return f"{model}@champion {stays}{candidate}: {promotion.reason}"


def results_markdown(records: Sequence[IterationRecord], decision: GateDecision | None) -> list[str]:
    """The results table as lines of Markdown, a row per iteration; without a decision no row is marked as champion."""
    datasets = tested_datasets(records)
    validated = list(dict.fromkeys(e.dataset for r in records for e in r.evaluations if e.split == "validation"))
    average = average_name(tested_reports(records))
    columns = [f"{name} (validation)" for name in validated]
    for name in datasets:
        columns += [name, f"{name} {average}"] if average else [name]
    head = ["iteration", *columns, "informative", "variance", "KL", "tokens", "seconds", ""]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for record, row in zip(records, records_table(records, decision), strict=True):
        cells = [format_accuracy(record.evaluation(name, "validation")) for name in validated]
        for name in datasets:
            cells += [row.accuracies[name], row.averages[name]] if average else [row.accuracies[name]]
        cells += [row.informative_share, row.variance, row.kl, row.tokens, row.seconds, row.decision]
        lines.append(f"| {' | '.join([row.name, *cells])} |")
    return lines


def version_link(model: str, version: str) -> str:
    """Where MLflow's page shows a version."""
    return f"#/models/{model}/versions/{version}"


def run_link(experiment_id: str, run_id: str) -> str:
    """Where MLflow's page shows a run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"
