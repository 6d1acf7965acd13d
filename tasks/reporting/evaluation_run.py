"""An evaluation in MLflow: a run of its own, named by what was measured on what, so that it is written once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import task

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.report.metrics import record_metrics
from pipeline_lib.tracking import Tracker
from pipeline_lib.tracking.provenance import describe_environment
from pipeline_lib.types import EvalReport, IterationRecord, PolicyRef, Ref
from tasks.evaluate import load_report
from tasks.runtime.keys import key_text

EVALUATED, ADAPTER, SPLIT = "coppice.evaluated", "coppice.adapter", "coppice.split"
SHOWN_CHARS = 8  # of an adapter's id, in the run's name
LOGGER = logging.getLogger("coppice.progress")


def track_evaluation(
    config: PipelineConfig,
    policy: PolicyRef,
    evaluations: Sequence[Ref],
    *,
    run_key: str,
    run_name: str,
    tags: Mapping[str, str],
) -> tuple[str, list[EvalReport]]:
    """Writes metrics, data digests and tags to the run of that key, made if it is not there; its id and the reports.

    Args:
        config: settings, logged as parameters.
        policy: what was measured; its iteration is the metrics' step.
        evaluations: what `evaluate_policy` returned, set by set.
        run_key: the same for the same measurement.
        run_name: how MLflow calls the run.
        tags: what was measured, in words.
    """
    reports = [load_report(ref) for ref in evaluations]
    refs = {f"evaluate/{report.dataset}": ref for report, ref in zip(reports, evaluations, strict=True)}
    record = IterationRecord(index=policy.iteration, policy=policy, evaluations=tuple(reports), refs=refs)
    return track_records(config, [record], run_key=run_key, run_name=run_name, tags=tags), reports


def track_records(
    config: PipelineConfig, records: Sequence[IterationRecord], *, run_key: str, run_name: str, tags: Mapping[str, str]
) -> str:
    """The same of several policies, each at its own step of one run; its id."""
    all_tags = {**describe_environment(), **tags}
    tracker = Tracker.open(Settings(), run_key=run_key, run_name=run_name, config=config, tags=all_tags)
    for record in records:
        reports = record.evaluations
        problems = {f"{report.split}/{report.dataset}": report.problems for report in reports if report.problems}
        tracker.log_points([(name, record.index, value) for name, value in record_metrics(record).items()])
        tracker.log_datasets(record.refs | problems, root=Settings().store_uri)
    tracker.end("FINISHED")
    return tracker.run_id


@task(name="record-evaluation", task_run_name="record evaluation on {split}")
def record_evaluation(
    *, config: PipelineConfig, policy: PolicyRef, split: str, evaluations: Sequence[Ref]
) -> list[EvalReport]:
    """Puts the evaluation of one policy into MLflow; given again it adds nothing. Returns the reports."""
    unnamed = config.model_copy(update={"name": None})
    material = "\n".join([policy.policy_id, split, key_text(unnamed), *(ref.sha256 for ref in evaluations)])
    adapter = {} if policy.adapter_uri is None else {ADAPTER: policy.adapter_uri}
    model = Path(config.policy.model).name
    named = f" with adapter {policy.policy_id.rpartition('-')[2][:SHOWN_CHARS]}" if adapter else ""
    run_id, reports = track_evaluation(
        unnamed,
        policy,
        evaluations,
        run_key=f"evaluation-{hashlib.sha256(material.encode()).hexdigest()[:16]}",
        run_name=f"{model}{named} on {split}",
        tags={EVALUATED: policy.policy_id, SPLIT: split, **adapter},
    )
    LOGGER.info(f"MLflow run: {run_id}")
    return reports
