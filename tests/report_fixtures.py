"""Records written by hand: runs whose story is known, for reports and failure signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline_lib.types import (
    AuditReport,
    EvalReport,
    GateDecision,
    Histogram,
    IterationRecord,
    PairedTest,
    PolicyRef,
    RunResult,
)

TRAINED, OTHER = "tiny-word", "tiny-algebra"


def make_audit(*, passed: bool = True, **changes: object) -> AuditReport:
    """Ten problems, four of them informative."""
    audit = AuditReport(
        num_problems=10,
        num_informative=4,
        num_all_correct=3,
        num_all_wrong=3,
        informative_share=0.4,
        num_steps=50,
        num_scored_steps=20,
        variance=0.125,
        variance_by_depth={1: 0.1},
        variance_by_visits={"8+": 0.2},
        positive_mass=3.0,
        negative_mass=-3.0,
        unparsed_share=0.01,
        truncated_share=0.0,
        rollouts={"correct": 80, "wrong": 78, "unparsed": 2, "timeout": 0, "truncated": 0},
        histogram=Histogram(edges=(-1.0, 0.0, 1.0), counts=(5, 45)),
        remedied=False,
        passed=passed,
        reason="4 of 10 problems are informative" if passed else "nothing is <informative>",
        advice="" if passed else "take easier problems",
    )
    return audit.model_copy(update=changes)


def make_report(dataset: str, split: str, accuracy: float, **changes: object) -> EvalReport:
    """A hundred answers with an interval of ±10 points."""
    report = EvalReport(
        dataset=dataset,
        split=split,
        policy_id="p",
        num_problems=100,
        num_correct=round(100 * accuracy),
        num_unparsed=0,
        num_truncated=0,
        accuracy=accuracy,
        interval=(max(0.0, accuracy - 0.1), min(1.0, accuracy + 0.1)),
    )
    return report.model_copy(update=changes)


def make_paired(dataset: str, split: str, difference: float, *, against: str = "base") -> PairedTest:
    """A difference with an interval of ±3 points."""
    return PairedTest(
        dataset=dataset,
        split=split,
        against=against,
        num_fixed=round(100 * max(difference, 0)) + 1,
        num_broken=round(100 * max(-difference, 0)) + 1,
        difference=difference,
        interval=(difference - 0.03, difference + 0.03),
        p_value=0.22,
    )


def make_record(
    index: int,
    validation: float | None = None,
    *,
    direct: float = 0.0,
    transfer: float = 0.0,
    passed: bool = True,
    audit: AuditReport | None = None,
    train: Mapping[str, float] | None = None,
) -> IterationRecord:
    """Iteration `index`; half of everything is right before training.

    Args:
        index: 0 for the base, which has neither audit nor training.
        validation: accuracy; a point per iteration where not given.
        direct: gain over the base on the trained dataset's test split, in [-1, 1].
        transfer: likewise on the other dataset.
        passed: without, the audit stopped the iteration before training.
        audit: instead of the usual one.
        train: training metrics, KL 0.0625 where not given.
    """
    validation = 0.5 + index / 100 if validation is None else validation
    reports = (
        make_report(TRAINED, "validation", validation),
        make_report(TRAINED, "test", 0.5 + (direct or index / 100)),
        make_report(OTHER, "test", 0.5 + (transfer or index / 100)),
    )
    paired = (
        make_paired(TRAINED, "validation", validation - 0.5),
        make_paired(TRAINED, "test", direct or index / 100),
        make_paired(OTHER, "test", transfer or index / 100),
    )
    return IterationRecord(
        index=index,
        policy=PolicyRef(policy_id=f"p{index}", base_model="tiny", iteration=index),
        evaluations=reports if passed else (),
        paired=paired if index and passed else (),
        audit=(audit or make_audit(passed=passed)) if index else None,
        search={"tokens_generated": 12345.0} if index else {},
        train=dict(train if train is not None else {"kl": 0.0625}) if index and passed else {},
        seconds={"evaluate": 2.0, "search": 3.0},
    )


def make_result(records: Sequence[IterationRecord], *, champion: int = 1) -> RunResult:
    """A run that ended after these records."""
    decision = GateDecision(proceed=False, champion=champion, reason="validation rose by 1 point")
    return RunResult(records=tuple(records), decision=decision, stopped_because="all iterations done", wall_s=9.0)


def with_samples(record: IterationRecord, mean: float = 0.4) -> IterationRecord:
    """The iteration with four samples a problem, their mean with an interval of ±5 points."""
    figures = {"mean": mean, "avg@4": mean, "maj@4": mean + 0.1, "pass@4": mean + 0.3}
    changes = {"sampled": figures, "sampled_interval": (mean - 0.05, mean + 0.05)}
    reports = tuple(report.model_copy(update=changes) for report in record.evaluations)
    return record.model_copy(update={"evaluations": reports})
