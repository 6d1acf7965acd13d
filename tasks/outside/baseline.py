"""Puts an outside baseline on record: a result like a run's, so that summaries and tables of both compare."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from prefect import task

from pipeline_lib.config import PipelineConfig
from pipeline_lib.gate import best_so_far
from pipeline_lib.training.outside.grpo_config import GrpoConfig
from pipeline_lib.types import GateDecision, IterationRecord, PolicyRef, Ref, RunResult
from tasks.finish import wall_s
from tasks.outside.grpo import load_curve
from tasks.record import make_record
from tasks.reporting.evaluation_run import track_records
from tasks.runtime.keys import key_text
from tasks.runtime.policies import base_policy

BASELINE, SETTINGS = "coppice.baseline", "coppice.baseline_settings"
AT_FIRST = {"tokens": 0, "updates": 0, "trained_tokens": 0, "seconds": 0.0}


def baseline_key(config: PipelineConfig, grpo: GrpoConfig, tokens: int) -> str:
    """What names the MLflow run of a baseline: the same for the same command."""
    unnamed = config.model_copy(update={"name": None})
    material = "\n".join([key_text(unnamed), key_text(grpo), str(tokens), base_policy(config).policy_id])
    return f"grpo-{hashlib.sha256(material.encode()).hexdigest()[:16]}"


@task(name="record-baseline", task_run_name="record grpo")
def record_baseline(
    *,
    config: PipelineConfig,
    grpo: GrpoConfig,
    tokens: int,
    problems: Sequence[Ref],
    trained: Ref,
    policies: Sequence[PolicyRef],
    evaluations: Sequence[Sequence[Ref]],
) -> RunResult:
    """Gathers a record per policy and writes them to one MLflow run, once; returns them as a run's result.

    Args:
        config: what it was told.
        grpo: GRPO's own settings.
        tokens: that were to be generated for each adapter.
        problems: what was asked.
        trained: what `train_grpo` returned.
        policies: the base, then that of each adapter.
        evaluations: for each policy what `evaluate_policy` returned, set by set.
    """
    asked = {f"problems/{number}": ref for number, ref in enumerate(problems, 1)}
    steps = [AT_FIRST, *load_curve(trained)]
    records: list[IterationRecord] = []
    for policy, measured in zip(policies, evaluations, strict=True):
        record = _record(config, policy, measured, records)
        if policy.iteration:
            before, after = steps[policy.iteration - 1 : policy.iteration + 1]
            record = _with_training(record, before, after).model_copy(update={"refs": {"train": trained, **asked}})
        records.append(record)
    run = track_records(
        config,
        [record.model_copy(update={"refs": record.refs | _evaluated(record)}) for record in records],
        run_key=baseline_key(config, grpo, tokens),
        run_name=f"GRPO {config.label}",
        tags={BASELINE: "trl-grpo", SETTINGS: key_text(grpo)},
    )
    best = best_so_far(records, dataset=config.problems.dataset)
    report = next(e for e in best.evaluations if e.split == "validation")
    decision = GateDecision(
        proceed=False, champion=best.index, reason=f"best validation accuracy, {report.accuracy:.1%}"
    )
    return RunResult(
        records=tuple(records),
        decision=decision,
        stopped_because=f"{tokens} tokens were generated for each of {len(records) - 1} adapters",
        wall_s=wall_s(),
        tracking_run=run,
    )


def _record(
    config: PipelineConfig, policy: PolicyRef, evaluations: Sequence[Ref], earlier: Sequence[IterationRecord]
) -> IterationRecord:
    """What was measured of one policy, and how it compares with those before."""
    return make_record(
        config=config,
        index=policy.iteration,
        parent=earlier[-1].policy if earlier else None,
        policy=policy,
        stages={},
        evaluations=evaluations,
        earlier=earlier,
    )


def _with_training(record: IterationRecord, before: Mapping[str, float], after: Mapping[str, float]) -> IterationRecord:
    """The record with what was done between two adapters, by the names that a run's iteration has for it.

    Its seconds of training are those of sampling and grading, too.
    """
    done = {name: after[name] - before[name] for name in AT_FIRST}
    return record.model_copy(
        update={
            "search": {"tokens_generated": float(done["tokens"])},
            "train": {
                "updates": float(done["updates"]),
                "tokens": float(done["trained_tokens"]),
                "reward": after["reward"],
                "kl": math.nan,  # not measured
            },
            "seconds": {**record.seconds, "train": done["seconds"]},
        }
    )


def _evaluated(record: IterationRecord) -> dict[str, Ref]:
    return {f"evaluate/{e.split}/{e.dataset}": e.predictions for e in record.evaluations if e.predictions is not None}
