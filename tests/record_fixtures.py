"""Records of iterations that never ran."""

from __future__ import annotations

from pipeline_lib.types import EvalReport, IterationRecord, PolicyRef, Ref


def make_record(
    index: int, accuracy: float = 0.5, *, policy_id: str | None = None, yardstick: str = ""
) -> IterationRecord:
    """An iteration measured on 100 problems each of validation and test, with an adapter from iteration 1 on."""
    policy = PolicyRef(
        policy_id=policy_id or f"policy-{index}",
        base_model="tiny",
        adapter_uri="train/x" if index else None,
        iteration=index,
    )
    reports = tuple(
        EvalReport(
            dataset="tiny-word",
            split=split,
            policy_id=policy.policy_id,
            num_problems=100,
            num_correct=round(100 * accuracy),
            num_unparsed=0,
            num_truncated=0,
            accuracy=accuracy,
            interval=(accuracy - 0.1, accuracy + 0.1),
            sampled={"maj@4": 0.25},
            problems=Ref(uri="draw-problems/abc", sha256="e" * 64, num_rows=100, schema_version=1),
            yardstick=yardstick,
        )
        for split in ("validation", "test")
    )
    return IterationRecord(
        index=index,
        policy=policy,
        evaluations=reports,
        search={"tokens_per_s": 10.0},
        train={"kl": 0.1} if index else {},
        seconds={"search": 2.0},
        refs={"trees": Ref(uri="search/abc", sha256="f" * 64, num_rows=3, schema_version=1)},
    )
