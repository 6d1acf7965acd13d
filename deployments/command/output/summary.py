"""What ``--summary`` writes: a run's results as JSON. Its keys are a contract; new ones are added, none goes."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.tracking.client import tracking_uri
from pipeline_lib.tracking.history.run_folder import config_file, log_file
from pipeline_lib.tracking.outage import without_password
from pipeline_lib.tracking.registered_model import model_name
from pipeline_lib.types import IterationRecord, JsonDict, RunResult
from tasks.runtime.policies import policy_folder

SEARCH_KEYS = {  # in the summary: in the record
    "tokens_per_s": "tokens_per_s",
    "engine_idle_share": "engine_idle_share",
    "tokens_generated": "tokens_generated",
    "tokens_kept": "tokens_kept",
    "rollouts": "num_rollouts",
    "engine_errors": "num_errors",
    "redrawn": "num_redrawn",
}


AUDIT_KEYS = {
    "variance",
    "informative_share",
    "num_problems",
    "num_all_correct",
    "num_all_wrong",
    "num_steps",
    "rollouts",
    "passed",
    "reason",
    "cutoffs",
}
FAILURE_KEYS = {name: SEARCH_KEYS[name] for name in ("engine_errors", "redrawn")}


def summary_json(result: RunResult, config: PipelineConfig, settings: Settings | None = None) -> JsonDict:
    """What ``--summary`` writes; accuracies are those of the test splits, in [0, 1].

    An iteration that did not train moved nothing: 0 updates, 0 tokens, KL 0. What was not measured is null.

    Args:
        result: what the run came to.
        config: what it was told.
        settings: where home, store and tracking server are; None leaves ids and paths out.
    """
    base, *iterations = result.records
    champion = next((r for r in result.records if r.index == result.decision.champion), base)
    return {
        "preset": config.preset,
        "seed": config.seed,
        "wall_s": result.wall_s,
        "base": _accuracies(base),
        "base_validation": _validation(base),
        "base_sampled": _samples(base),
        "base_truncated": _truncated(base),
        "iterations": [_iteration_json(record) for record in iterations],
        "champion": {
            "iteration": champion.index,
            "accuracy": _accuracies(champion),
            "sampled": _samples(champion),
        },
        "stopped_because": result.stopped_because,
        **({} if settings is None else {"run": _places(result, config, settings)}),
    }


def _places(result: RunResult, config: PipelineConfig, settings: Settings) -> JsonDict:
    """Ids and paths: of the run, of the champion, and of every iteration that trained."""
    home, run, promotion = settings.home.resolve(), result.tracking_run, result.promotion
    folders = {record.index: policy_folder(record.policy) for record in result.records}
    return {
        "id": run,
        "name": config.label,
        "tracking_uri": without_password(tracking_uri(settings)),
        "home": str(home),
        "store": settings.store_uri,
        "config": None if run is None else str(config_file(home, run)),
        "log": None if run is None else str(log_file(home, run)),
        "model": model_name(config.preset),
        "version": promotion and promotion.version,
        "adapter": _text(folders.get(result.decision.champion)),
        "iterations": [
            {
                "index": record.index,
                "id": record.tracking_run,
                "policy_id": record.policy.policy_id,
                "adapter": _text(folders[record.index]),
                "entries": {name: ref.uri for name, ref in record.refs.items()},
            }
            for record in result.records
        ],
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _iteration_json(record: IterationRecord) -> JsonDict:
    audit, train = record.audit, record.train
    return {
        "index": record.index,
        "accuracy": _accuracies(record),
        "validation": _validation(record),
        "interval": {e.dataset: list(e.interval) for e in record.evaluations if e.split == "test"},
        "sampled": _samples(record),
        "truncated": _truncated(record),
        "evaluate": {name: _finite(record.evaluate.get(key)) for name, key in FAILURE_KEYS.items()},
        "parent": record.parent,
        "audit": audit and audit.model_dump(include=AUDIT_KEYS),
        "search": {name: _finite(record.search.get(key)) for name, key in SEARCH_KEYS.items()},
        "train": {
            "updates": int(train.get("updates", 0)),
            "kl": _finite(train.get("kl", 0.0)),
            "tokens": int(train.get("tokens", 0)),
            "negatives_pushed": _finite(train.get("negatives_pushed")),
        },
        "seconds": dict(record.seconds),
    }


def _accuracies(record: IterationRecord) -> dict[str, float]:
    return {e.dataset: e.accuracy for e in record.evaluations if e.split == "test"}


def _validation(record: IterationRecord) -> float | None:
    """Accuracy on the validation set, which the gate reads; None where nothing was measured."""
    return next((e.accuracy for e in record.evaluations if e.split == "validation"), None)


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
