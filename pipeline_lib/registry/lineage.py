"""Where a version came from and what it scored, as the flat texts that a registry keeps and searches.

What is written here is all that a later decision needs, so the run itself may be gone by then.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline_lib.registry.promotion import ValidationScore, validation_report
from pipeline_lib.types import IterationRecord, PolicyRef

POLICY_ID, PARENT_ITERATION = "coppice.policy_id", "coppice.parent_iteration"
BASE_MODEL, BASE_REVISION = "coppice.base_model", "coppice.base_revision"
VALIDATION_FIELDS = ("dataset", "accuracy", "num_problems", "yardstick")


def version_tags(
    record: IterationRecord, parent: PolicyRef, parent_version: str | None, scores: Mapping[str, float]
) -> dict[str, str]:
    """Tags of a version: policy, parent, digests of all data that it saw or was measured on, scores with intervals.

    Args:
        record: the iteration that made the version.
        parent: the policy that it was trained from.
        parent_version: the parent's version of the same registered model; None for the base.
        scores: metric to value, see `report.metrics.version_scores`.
    """
    tags = {
        POLICY_ID: record.policy.policy_id,
        "coppice.iteration": str(record.index),
        "coppice.parent_version": parent_version or "base",
        "coppice.parent_policy_id": parent.policy_id,
        BASE_MODEL: record.policy.base_model,
    }
    if record.parent is not None:
        tags[PARENT_ITERATION] = str(record.parent)
    if record.policy.revision is not None:
        tags[BASE_REVISION] = record.policy.revision
    tags |= {f"digest/{name}": ref.sha256 for name, ref in record.refs.items()}
    for measured in record.evaluations:
        if measured.problems is not None:
            tags[f"digest/{measured.split}/{measured.dataset}"] = measured.problems.sha256
    report = validation_report(record)
    if report is not None:
        score = ValidationScore.of("", report)
        tags |= {f"coppice.validation.{name}": str(getattr(score, name)) for name in VALIDATION_FIELDS}
    return tags | {name: f"{value:.6g}" for name, value in scores.items()}


def score_from_tags(version: str, tags: Mapping[str, str]) -> ValidationScore:
    """What `version_tags` wrote about validation, read back.

    A version that something else registered lacks the tags: its empty yardstick makes it comparable with nothing.
    """
    dataset, accuracy, num_problems, yardstick = (tags.get(f"coppice.validation.{name}") for name in VALIDATION_FIELDS)
    return ValidationScore(version, dataset or "", float(accuracy or "nan"), int(num_problems or 0), yardstick or "")
