"""What ``--summary`` writes: a run's results as JSON. Its keys are a contract; new ones are added, none goes."""

from __future__ import annotations

import math

from pipeline_lib.config import PipelineConfig
from pipeline_lib.types import IterationRecord, JsonDict, RunResult

SEARCH_KEYS = {  # in the summary: in the record
    "tokens_per_s": "tokens_per_s",
    "engine_idle_share": "engine_idle_share",
    "tokens_generated": "tokens_generated",
    "tokens_kept": "tokens_kept",
    "rollouts": "num_rollouts",
    "engine_errors": "num_errors",
    "redrawn": "num_redrawn",
}


FAILURE_KEYS = {name: SEARCH_KEYS[name] for name in ("engine_errors", "redrawn")}


def summary_json(result: RunResult, config: PipelineConfig) -> JsonDict:
    """What ``--summary`` writes; accuracies are those of the test splits, in [0, 1].

    An iteration that did not train moved nothing: 0 updates, 0 tokens, KL 0. What was not measured is null.
    """
    base, *iterations = result.records
    champion = next((r for r in result.records if r.index == result.decision.champion), base)
    return {
        "preset": config.preset,
        "seed": config.seed,
        "wall_s": result.wall_s,
        "base": _accuracies(base),
        "base_sampled": _samples(base),
        "base_truncated": _truncated(base),
        "iterations": [_iteration_json(record) for record in iterations],
        "champion": {
            "iteration": champion.index,
            "accuracy": _accuracies(champion),
            "sampled": _samples(champion),
        },
        "stopped_because": result.stopped_because,
    }


def _iteration_json(record: IterationRecord) -> JsonDict:
    audit, train = record.audit, record.train
    return {
        "index": record.index,
        "accuracy": _accuracies(record),
        "interval": {e.dataset: list(e.interval) for e in record.evaluations if e.split == "test"},
        "sampled": _samples(record),
        "truncated": _truncated(record),
        "evaluate": {name: _finite(record.evaluate.get(key)) for name, key in FAILURE_KEYS.items()},
        "parent": record.parent,
        "audit": audit and audit.model_dump(include={"variance", "informative_share", "passed", "reason", "cutoffs"}),
        "search": {name: _finite(record.search.get(key)) for name, key in SEARCH_KEYS.items()},
        "train": {
            "updates": int(train.get("updates", 0)),
            "kl": _finite(train.get("kl", 0.0)),
            "tokens": int(train.get("tokens", 0)),
        },
        "seconds": dict(record.seconds),
    }


def _accuracies(record: IterationRecord) -> dict[str, float]:
    return {e.dataset: e.accuracy for e in record.evaluations if e.split == "test"}


def _truncated(record: IterationRecord) -> JsonDict:
    """By test set: the answers that a limit cut off, those of them in no other count, and how many each limit did."""
    return {
        e.dataset: {"truncated": e.num_truncated, "ignored": e.num_ignored, **e.cutoffs}
        for e in record.evaluations
        if e.split == "test"
    }


def _samples(record: IterationRecord) -> JsonDict:
    """By test set that was sampled: avg@n, its interval, maj@n and pass@k."""
    return {
        e.dataset: {**e.sampled, "interval": e.sampled_interval and list(e.sampled_interval)}
        for e in record.evaluations
        if e.split == "test" and e.sampled
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None  # JSON has no nan
