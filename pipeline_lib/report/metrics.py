"""Records as flat names and numbers: what a tracking server, a table or a plot can hold.

A metric's name is a path, ``eval/gsm8k/accuracy``, so that a viewer can fold by prefix.
Test splits live under ``eval/``, validation splits under ``validation/``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from pipeline_lib.report.tables import average_name
from pipeline_lib.types import AuditReport, EvalReport, IterationRecord

MAX_PARAM_CHARS = 500
HEADLINE = re.compile(
    r"(eval|validation)/[^/]+/(accuracy|avg_at_\d+)|score/(variance|informative_share)|train/(kl|updates)"
    r"|search/(tokens_per_s|tokens_generated|engine_idle_share)|time/.+"
)
AUDIT_METRICS = (
    "variance",
    "informative_share",
    "num_informative",
    "num_all_correct",
    "num_all_wrong",
    "num_steps",
    "num_scored_steps",
    "positive_mass",
    "negative_mass",
    "unparsed_share",
    "truncated_share",
)


def record_metrics(record: IterationRecord) -> dict[str, float]:
    """Every number of one iteration under its path; what was not measured (nan) is left out.

    Example: a record with ``train={"kl": 0.1}`` and ``seconds={"search": 4.0}`` gives
    ``{"train/kl": 0.1, "time/search_s": 4.0}``.
    """
    metrics: dict[str, float] = {}
    for report in record.evaluations:
        metrics |= _evaluation_metrics(report)
    for test in record.paired:
        prefix = f"{_split_prefix(test.split)}/{test.dataset}/paired_{test.against.replace(' ', '_')}"
        low, high = test.interval
        metrics |= {f"{prefix}/difference": test.difference, f"{prefix}/p_value": test.p_value}
        metrics |= {f"{prefix}/difference_low": low, f"{prefix}/difference_high": high}
    if record.audit is not None:
        metrics |= _audit_metrics(record.audit)
    metrics |= {f"search/{name}": value for name, value in record.search.items()}
    metrics |= {f"train/{name}": value for name, value in record.train.items()}
    metrics |= {f"evaluate/{name}": value for name, value in record.evaluate.items()}
    metrics |= {f"time/{stage}_s": value for stage, value in record.seconds.items()}
    return {metric_key(name): float(value) for name, value in metrics.items() if math.isfinite(value)}


def version_scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of one iteration's metrics those that tell what its adapter is worth: accuracies, intervals, KL, scores.

    Times and the search's throughput are left out.
    """
    return {
        name: value
        for name, value in metrics.items()
        if is_headline(name.removesuffix("_low").removesuffix("_high")) and not name.startswith(("time/", "search/"))
    }


def update_points(history: Sequence[Mapping[str, float]]) -> list[tuple[str, int, float]]:
    """(metric, update, value) of a training history, one mapping per update; updates count from 1.

    Example: ``update_points([{"loss": 0.5}]) == [("train/update/loss", 1, 0.5)]``
    """
    return [
        (f"train/update/{name}", update, float(value))
        for update, metrics in enumerate(history, 1)
        for name, value in metrics.items()
        if math.isfinite(value)
    ]


def metric_key(name: str) -> str:
    """`name` with what MLflow refuses in a key replaced.

    Example: ``metric_key("eval/gsm8k/maj@4")`` is ``"eval/gsm8k/maj_at_4"``.
    """
    return re.sub(r"[^\w\-./ ]", "_", name.replace("@", "_at_").replace("+", "_plus"))


def is_headline(name: str) -> bool:
    """True for the few metrics that a run's summary shows beside its iterations'."""
    return HEADLINE.fullmatch(name) is not None


def flatten(model: BaseModel) -> dict[str, str]:
    """A nested model as dotted names and texts of at most 500 characters.

    Example: ``flatten(PipelineConfig())["search.c_uct"] == "1.0"``
    """
    return {name: _as_text(value)[:MAX_PARAM_CHARS] for name, value in _leaves(model.model_dump(mode="json"), "")}


def _leaves(values: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in values.items():
        leaves += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return leaves


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _split_prefix(split: str) -> str:
    return "eval" if split == "test" else split


def _evaluation_metrics(report: EvalReport) -> dict[str, float]:
    prefix = f"{_split_prefix(report.split)}/{report.dataset}"
    low, high = report.interval
    metrics = {"accuracy": report.accuracy, "accuracy_low": low, "accuracy_high": high, **report.sampled}
    average = average_name([report])
    if average is not None and report.sampled_interval is not None:
        metrics |= {
            f"{average}_{end}": limit for end, limit in zip(("low", "high"), report.sampled_interval, strict=True)
        }
    names = ("num_problems", "num_correct", "num_wrong", "num_unparsed", "num_timeouts", "num_truncated")
    counts = {name: getattr(report, name) for name in names} | {"num_ignored": report.num_ignored}
    counts |= {f"cutoffs/{name}": count for name, count in report.cutoffs.items()}
    return {f"{prefix}/{name}": value for name, value in (metrics | counts).items()}


def _audit_metrics(audit: AuditReport) -> dict[str, float]:
    metrics = {f"score/{name}": float(getattr(audit, name)) for name in AUDIT_METRICS}
    metrics |= {f"score/variance/depth/{depth}": value for depth, value in audit.variance_by_depth.items()}
    metrics |= {f"score/variance/visits/{bucket}": value for bucket, value in audit.variance_by_visits.items()}
    metrics |= {f"search/rollouts/{name}": float(count) for name, count in audit.rollouts.items()}
    metrics |= {f"search/cutoffs/{name}": float(count) for name, count in audit.cutoffs.items()}
    metrics |= {f"score/oracle/{name}": value for name, value in audit.oracle.items()}
    if audit.remedy is not None:
        metrics |= {f"score/remedy/{name}": float(value) for name, value in audit.remedy.model_dump().items()}
    metrics["score/audit_passed"] = float(audit.passed)
    return metrics
