"""Ends a run: champion, report, result, and what is announced of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline_lib.config import PipelineConfig
from pipeline_lib.report import findings_markdown
from pipeline_lib.report.notes import run_note
from pipeline_lib.store import Entry, read_json, write_json
from pipeline_lib.tracking import TrackingOutage, model_name
from pipeline_lib.types import GateDecision, IterationRecord, RunResult
from tasks.orchestration.context import flow_context
from tasks.record import MEASURED, records_spec
from tasks.reporting.announce import announce_result
from tasks.reporting.gather import MATERIAL_FILE, gather_material, render_report
from tasks.runtime.artifacts import show_markdown
from tasks.runtime.flow_tracking import is_tracked, open_tracker, run_key
from tasks.runtime.keys import key_of
from tasks.runtime.stage import Done, stage

RESULT, RESULT_FILE = "result", "result.json"


def _finish_spec(
    *, config: PipelineConfig, records: Sequence[IterationRecord], decision: GateDecision
) -> dict[str, Any]:
    return {"run": run_key(config), "records": records_spec(records), "decision": key_of(decision)}


def load_result(entry: Entry) -> RunResult:
    """What `finish_run` came to; version 0.1.0 had all of it in the measurements."""
    measured = entry.observations()[RESULT]
    if not (entry.path / RESULT_FILE).is_file():
        return RunResult.model_validate(measured)
    found = read_json(entry.path / RESULT_FILE)
    both = zip(measured["records"], found["records"], strict=True)
    return RunResult.model_validate({**measured, **found, "records": [{**own, **record} for own, record in both]})


@stage(
    _finish_spec,
    run_name="finish",
    result=load_result,
    still_holds=lambda entry, **_: is_tracked(entry, RESULT),
    transient=(TrackingOutage,),
)
def finish_run(
    entry: Entry, *, config: PipelineConfig, records: Sequence[IterationRecord], decision: GateDecision
) -> Done:
    """Names the champion, writes report and result to MLflow, and ends its run."""
    tracker = open_tracker(config)
    result = RunResult(
        records=tuple(records),
        decision=decision,
        stopped_because=_stopped_because(records, decision),
        wall_s=wall_s(),
        tracking_run=tracker.run_id,
        promotion=tracker.apply_gate_decision(records, decision),
    )
    material = gather_material(records)
    page = render_report(config, result, material)
    tracker.finish(result, texts={"report.html": page, MATERIAL_FILE: material.model_dump_json()})
    note = run_note(records, decision, result=result, model=model_name(config.preset))
    summary = f"{findings_markdown(config, result)}\n\n{note}"
    show_markdown(summary, key="report", description=result.stopped_because)
    announce_result(config, result)
    dumped = result.model_dump(mode="json", include={"decision", "stopped_because"})
    dumped["records"] = [record.model_dump(mode="json", exclude=MEASURED) for record in records]
    write_json(entry.path / RESULT_FILE, dumped)
    measured = result.model_dump(mode="json", include={"wall_s", "tracking_run", "promotion"})
    measured["records"] = [record.model_dump(mode="json", include=MEASURED) for record in records]
    return Done(len(records), {RESULT: measured})


def _stopped_because(records: Sequence[IterationRecord], decision: GateDecision) -> str:
    """One sentence; a stop by the audit says also what to change."""
    if decision.proceed:
        return "num_iterations reached"
    audit = records[-1].audit
    if audit is None or audit.passed:
        return decision.reason
    return f"audit of iteration {records[-1].index}: {audit.reason}; {audit.advice}"


def wall_s() -> float:
    """Seconds since the flow began; 0 outside a flow."""
    context = flow_context()
    return (datetime.now(UTC) - context.start_time).total_seconds() if context else 0.0
