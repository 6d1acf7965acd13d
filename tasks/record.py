"""Puts an iteration on record: one JSON in the store, one run in MLflow, one table in Prefect.

One idea: records are stages too. What a record says lies in its entry beside the digest, for it holds seconds and
the id of an MLflow run; a finished record is written again only when MLflow has lost its run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect.context import FlowRunContext

from pipeline_lib.config import PipelineConfig
from pipeline_lib.evaluation import paired_test, read_predictions
from pipeline_lib.gate import decide
from pipeline_lib.notes import run_note
from pipeline_lib.report import findings_markdown
from pipeline_lib.search import SearchStats, total_stats
from pipeline_lib.store import Entry, read_json, write_json
from pipeline_lib.tracking import Tracker, TrackingOutage, model_name
from pipeline_lib.types import EvalReport, GateDecision, IterationRecord, PairedTest, PolicyRef, Ref, RunResult
from tasks.announce import announce_result
from tasks.audit import load_audit
from tasks.contents import Stages, contents_of, figures_page, histories_of
from tasks.evaluate import PREDICTIONS, load_report
from tasks.report import MATERIAL_FILE, gather_material, render_report
from tasks.search import TOTALS
from tasks.show import show_markdown, show_table
from tasks.stage import open_store, stage
from tasks.tracker import is_tracked, open_tracker, run_key

RECORD, RESULT, DECISION = "record", "result", "decision.json"
MEASURED = {"search", "train", "seconds", "tracking_run"}  # differ from one run to the next of equal records


def _known(records: Sequence[IterationRecord]) -> list[dict[str, Any]]:
    return [record.model_dump(mode="json", exclude=MEASURED) for record in records]


def _record_spec(
    *,
    config: PipelineConfig,
    index: int,
    policy: PolicyRef,
    stages: Stages,
    evaluations: Sequence[Ref],
    earlier: Sequence[IterationRecord],
) -> dict[str, Any]:
    return {
        "run": run_key(config),
        "index": index,
        "policy": policy.model_dump(),
        "stages": {name: [ref.sha256 for ref in refs] for name, refs in stages.items()},
        "earlier": _known(earlier),
    }


@stage(
    _record_spec,
    run_name="record {index}",
    result=lambda entry: IterationRecord.model_validate(entry.observations()[RECORD]),
    still_holds=lambda entry, **_: is_tracked(entry, RECORD),
    passing=(TrackingOutage,),
)
def record_iteration(
    entry: Entry,
    *,
    config: PipelineConfig,
    index: int,
    policy: PolicyRef,
    stages: Stages,
    evaluations: Sequence[Ref],
    earlier: Sequence[IterationRecord],
) -> None:
    """Gathers what the stages of one iteration left, and writes it to MLflow once.

    Args:
        entry: its observations become the record.
        config: of the run.
        index: 0 for the base.
        policy: that the iteration ended with.
        stages: references by stage: ``problems``, ``search``, ``score``, ``audit``, ``train``; ``first_search`` is the
            one before the audit's remedy.
        evaluations: references of `evaluate_policy`.
        earlier: records of the iterations before, base first.
    """
    reports = tuple(load_report(ref) for ref in evaluations)
    record = IterationRecord(
        index=index,
        policy=policy,
        evaluations=reports,
        paired=_paired_tests(reports, earlier),
        audit=load_audit(stages["audit"][0]) if "audit" in stages else None,
        search=_search_metrics((*stages.get("first_search", ()), *stages.get("search", ()))),
        train=_observations(stages["train"][0]) if "train" in stages else {},
        seconds=_seconds({**stages, "evaluate": tuple(evaluations)}),
        refs={
            f"{name}/{i}" if len(refs) > 1 else name: ref for name, refs in stages.items() for i, ref in enumerate(refs)
        },
    )
    run = _track(config, record, stages, earlier)
    entry.commit(len(reports), {RECORD: record.model_copy(update={"tracking_run": run}).model_dump(mode="json")})


def _gate_spec(*, config: PipelineConfig, records: Sequence[IterationRecord]) -> dict[str, Any]:
    return {"gate": config.gate.model_dump(), "dataset": config.problems.dataset, "records": _known(records)}


@stage(
    _gate_spec,
    run_name="gate",
    result=lambda entry: GateDecision.model_validate(read_json(entry.path / DECISION)),
)
def decide_gate(entry: Entry, *, config: PipelineConfig, records: Sequence[IterationRecord]) -> None:
    """Whether to go on, from the validation accuracies on record."""
    decision = decide(records, config.gate, dataset=config.problems.dataset)
    write_json(entry.path / DECISION, decision)
    verdict = "Go on" if decision.proceed else "Stop"
    show_markdown(f"**{verdict}.** {decision.reason}", key="gate", description=f"After iteration {records[-1].index}")
    entry.commit(len(records))


def _finish_spec(
    *, config: PipelineConfig, records: Sequence[IterationRecord], decision: GateDecision
) -> dict[str, Any]:
    return {"run": run_key(config), "records": _known(records), "decision": decision.model_dump()}


@stage(
    _finish_spec,
    run_name="finish",
    result=lambda entry: RunResult.model_validate(entry.observations()[RESULT]),
    still_holds=lambda entry, **_: is_tracked(entry, RESULT),
    passing=(TrackingOutage,),
)
def finish_run(
    entry: Entry, *, config: PipelineConfig, records: Sequence[IterationRecord], decision: GateDecision
) -> None:
    """Names the champion, writes report and result to MLflow, and ends its run."""
    tracker = open_tracker(config)
    result = RunResult(
        records=tuple(records),
        decision=decision,
        stopped_because=_stopped_because(records, decision),
        wall_s=_wall_s(),
        tracking_run=tracker.run_id,
        promotion=tracker.settle(records, decision),
    )
    material = gather_material(records)
    page = render_report(config, result, material)
    tracker.finish(result, texts={"report.html": page, MATERIAL_FILE: material.model_dump_json()})
    note = run_note(records, decision, result=result, model=model_name(config.preset))
    summary = f"{findings_markdown(config, result)}\n\n{note}"
    show_markdown(summary, key="report", description=result.stopped_because)
    announce_result(config, result)
    entry.commit(len(records), {RESULT: result.model_dump(mode="json")})


def _stopped_because(records: Sequence[IterationRecord], decision: GateDecision) -> str:
    """One sentence; a stop by the audit says also what to change."""
    if decision.proceed:
        return "num_iterations reached"
    audit = records[-1].audit
    return f"{decision.reason}; {audit.advice}" if audit and audit.advice else decision.reason


def _wall_s() -> float:
    """Seconds since the flow began; 0 outside a flow."""
    context = FlowRunContext.get()
    return (datetime.now(UTC) - context.start_time).total_seconds() if context else 0.0


def _paired_tests(reports: Sequence[EvalReport], earlier: Sequence[IterationRecord]) -> tuple[PairedTest, ...]:
    """Against the base and, from iteration 2 on, against the previous iteration."""
    rivals = {"base": earlier[0]} if earlier else {}
    if len(earlier) > 1:
        rivals["previous"] = earlier[-1]
    return tuple(
        paired_test(_correct(before), _correct(report), dataset=report.dataset, split=report.split, against=name)
        for name, record in rivals.items()
        for report in reports
        if (before := record.evaluation(report.dataset, report.split)) is not None
    )


def _correct(report: EvalReport) -> dict[str, bool]:
    """Problem id to whether the greedy answer was right."""
    assert report.predictions is not None
    folder = open_store().open(report.predictions)
    return {p.problem_id: p.is_correct for p in read_predictions(folder / PREDICTIONS)}


def _search_metrics(refs: Sequence[Ref]) -> dict[str, float]:
    """Stats of all shards, and whether they equal an uninterrupted search: they do where the engine is batch-invariant.

    ``num_resumed`` counts trees that an earlier, killed process had finished. Rollouts and tokens are those of the
    whole search, rates and seconds those of the process that ended it.
    """
    if not refs:
        return {}
    names = set(SearchStats.model_fields)
    observed = [_observations(ref) for ref in refs]
    shards = [{k: v for k, v in shard.items() if k in names} for shard in observed]
    return total_stats([SearchStats.model_validate(shard) for shard in shards if shard]).metrics() | {
        **{name: sum(shard.get(f"total/{name}", 0.0) for shard in observed) for name in TOTALS},
        "num_resumed": sum(shard.get("num_resumed", 0.0) for shard in observed),
        "batch_invariant": min(shard.get("batch_invariant", 1.0) for shard in observed),
    }


def _seconds(stages: Stages) -> dict[str, float]:
    return {name: sum(_observations(ref)["stage_seconds"] for ref in refs) for name, refs in stages.items()}


def _observations(ref: Ref) -> dict[str, float]:
    return {name: float(value) for name, value in open_store().observations(ref).items()}


def _track(config: PipelineConfig, record: IterationRecord, stages: Stages, earlier: Sequence[IterationRecord]) -> str:
    tracker, records = open_tracker(config), [*earlier, record]
    if record.index == 0:
        _link(tracker)
    run = tracker.log_iteration(record, contents_of(record, stages, earlier))
    tracker.log_files({}, figures_page(f"{config.preset}, seed {config.seed}", records, histories_of(records)))
    tracker.describe(records, decide(records, config.gate, dataset=config.problems.dataset))
    show_table(_rows(record), key="accuracy", description=f"Iteration {record.index}")
    return run


def _link(tracker: Tracker) -> None:
    """From the flow run's artifacts to its MLflow run; without a server there is no page to link to."""
    text = f"MLflow run `{tracker.run_id}`" if tracker.url is None else f"[MLflow run]({tracker.url})"
    show_markdown(text, key="mlflow-run", description="Metrics and models")


def _rows(record: IterationRecord) -> list[dict[str, Any]]:
    return [
        {
            "dataset": report.dataset,
            "split": report.split,
            "accuracy": f"{report.accuracy:.1%}",
            "95 % interval": "{:.1%} – {:.1%}".format(*report.interval),
            "unparsed": report.num_unparsed,
            "truncated": report.num_truncated,
        }
        for report in record.evaluations
    ] or [{"dataset": "none", "split": "", "accuracy": "not trained: see the audit"}]
