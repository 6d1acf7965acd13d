"""Puts an iteration on record: one JSON in the store, one run in MLflow, one table in Prefect."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import Flow, State, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.utilities.urls import url_for

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.evaluation import paired_test, read_predictions
from pipeline_lib.gate import decide
from pipeline_lib.notes import run_note
from pipeline_lib.provenance import describe_environment
from pipeline_lib.report import findings_markdown
from pipeline_lib.search import SearchStats, total_stats
from pipeline_lib.tracking import Tracker, model_name
from pipeline_lib.types import EvalReport, GateDecision, IterationRecord, PairedTest, PolicyRef, Ref, RunResult
from tasks.announce import announce_result
from tasks.audit import load_audit
from tasks.contents import Stages, contents_of, figures_page, histories_of
from tasks.evaluate import PREDICTIONS, load_report
from tasks.policies import base_policy
from tasks.report import MATERIAL_FILE, gather_material, render_report
from tasks.search import TOTALS
from tasks.stage import open_store


@task(name="record-iteration", task_run_name="record {index}")
def record_iteration(
    *,
    config: PipelineConfig,
    index: int,
    policy: PolicyRef,
    stages: Stages,
    evaluations: Sequence[Ref],
    earlier: Sequence[IterationRecord],
) -> IterationRecord:
    """Gathers what the stages of one iteration left, and writes it to MLflow once.

    Args:
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
    return record.model_copy(update={"tracking_run": run})


@task(name="decide", task_run_name="gate")
def decide_gate(*, config: PipelineConfig, records: Sequence[IterationRecord]) -> GateDecision:
    """Whether to go on, from the validation accuracies on record."""
    decision = decide(records, config.gate, dataset=config.problems.dataset)
    create_markdown_artifact(
        f"**{'Go on' if decision.proceed else 'Stop'}.** {decision.reason}", key="gate", description=decision.reason
    )
    return decision


@task(name="finish-run", task_run_name="finish")
def finish_run(*, config: PipelineConfig, records: Sequence[IterationRecord], decision: GateDecision) -> RunResult:
    """Names the champion, writes report and result to MLflow, and ends its run."""
    tracker = _tracker(config)
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
    create_markdown_artifact(summary, key="report", description=result.stopped_because)
    announce_result(config, result)
    return result


def end_unfinished(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's hook: ends the MLflow run of a pipeline that failed or was stopped from outside."""
    config = PipelineConfig.model_validate(flow_run.parameters["config"])
    tracker = _tracker(config, flow_run)
    tracker.set_tags({"coppice.error": " ".join((state.message or "").split())})
    tracker.end("FAILED" if state.is_failed() else "KILLED")


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


def _tracker(config: PipelineConfig, flow_run: FlowRun | None = None) -> Tracker:
    """The MLflow run of this flow run.

    A flow run of a deployment is named by its id, so that Retry attaches to the same MLflow run; one
    from the terminal by its configuration, base and commit, so that the same command goes on where it was killed.
    """
    context = FlowRunContext.get()
    flow_run = flow_run or (context.flow_run if context else None)
    tags = describe_environment()
    identity = (config.model_dump_json(), base_policy(config).policy_id, tags.get("mlflow.source.git.commit", ""))
    key = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    if flow_run is not None:
        tags["prefect.flow_run_id"] = str(flow_run.id)
        if (page := url_for("flow-run", obj_id=flow_run.id)) is not None:
            tags["prefect.flow_run_url"] = page
        if flow_run.deployment_id is not None:
            key = str(flow_run.id)
    name = f"{config.preset} seed {config.seed}"
    return Tracker.open(Settings(), run_key=key, run_name=name, config=config, tags=tags)


def _track(config: PipelineConfig, record: IterationRecord, stages: Stages, earlier: Sequence[IterationRecord]) -> str:
    tracker, records = _tracker(config), [*earlier, record]
    if record.index == 0:
        _link(tracker)
    run = tracker.log_iteration(record, contents_of(record, stages, earlier))
    tracker.log_files({}, figures_page(f"{config.preset}, seed {config.seed}", records, histories_of(records)))
    tracker.describe(records, decide(records, config.gate, dataset=config.problems.dataset))
    create_table_artifact(_rows(record), key="accuracy", description=f"Iteration {record.index}")
    return run


def _link(tracker: Tracker) -> None:
    """From the flow run's artifacts to its MLflow run; without a server there is no page to link to."""
    if tracker.url is not None:
        create_link_artifact(tracker.url, link_text="MLflow run", key="mlflow-run", description="Metrics and models")
    else:
        create_markdown_artifact(f"MLflow run `{tracker.run_id}`", key="mlflow-run", description="Metrics and models")


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
