"""The sanity check of a run of one iteration: what it shows, and what only more iterations can show.

One iteration answers whether each part of the loop does its work; whether further iterations pay is a question
about a curve, and one point is no curve.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline_lib.config import PipelineConfig
from pipeline_lib.report.signatures import HIGH_UNUSABLE, KL_NEAR_ALARM, format_points, last_kl
from pipeline_lib.types import AuditReport, IterationRecord, PairedTest, RunResult

YES, NO, OPEN = "yes", "no", "open"
CANNOT_TELL = (
    "whether a second iteration gains again or declines",
    "whether gate.patience and gate.min_gain are well chosen",
    "how much of the gain another seed would have brought",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One question about the loop.

    Args:
        name: a word or two, for the terminal.
        question: the whole of it.
        verdict: ``yes``, ``no`` or ``open``: not measured, or within the noise.
        evidence: the numbers behind the verdict.
    """

    name: str
    question: str
    verdict: str
    evidence: str


def single_iteration_checks(result: RunResult, config: PipelineConfig) -> list[Check]:
    """The questions that one iteration answers; none unless the run has just one.

    Args:
        result: the run's records, the base first.
        config: the run's; the trained dataset and the KL alarm are read.
    """
    if len(result.records) != 2:
        return []
    record, dataset = result.records[1], config.problems.dataset
    tests = [test for test in record.paired if test.against == "base" and test.split == "test"]
    checks = [] if record.audit is None else [_gradable(record.audit), _signal(record.audit)]
    checks.append(_near(record, config.train.kl_alarm))
    checks += [
        _gained("learns", f"Does it answer more {dataset} problems?", test) for test in tests if test.dataset == dataset
    ]
    checks += [
        _gained("carries over", f"Does it answer more {test.dataset} problems, never trained on?", test)
        for test in tests
        if test.dataset != dataset
    ]
    return checks


def _gradable(audit: AuditReport) -> Check:
    unusable = audit.unparsed_share + audit.truncated_share
    verdict = YES if unusable <= HIGH_UNUSABLE else NO
    return Check("gradable", "Can the rollouts be graded?", verdict, f"{100 * (1 - unusable):.1f} % of them")


def _signal(audit: AuditReport) -> Check:
    return Check("signal", "Do the scores tell steps apart?", YES if audit.passed else NO, audit.reason)


def _near(record: IterationRecord, kl_alarm: float) -> Check:
    question, kl = "Does it stay near the policy it started from?", last_kl(record)
    if kl is None:
        return Check("stays near", question, OPEN, "no KL: it did not train, or train.kl_beta is 0")
    verdict = YES if kl < KL_NEAR_ALARM * kl_alarm and not record.train.get("stopped_by_kl_alarm") else NO
    return Check("stays near", question, verdict, f"KL {kl:.3f} nats per token, alarm at {kl_alarm:.3g}")


def _gained(name: str, question: str, test: PairedTest) -> Check:
    low, high = test.interval
    verdict = YES if low > 0 else NO if high < 0 else OPEN
    return Check(name, question, verdict, format_points(test) + ("" if verdict != OPEN else ", within the noise"))
