"""Failure signatures: ways in which self-training is known to go wrong, named when a run shows one.

Each signature is one function from the records to a finding or None, and each threshold a constant with its reason
beside it. They warn; what stops a run is the audit, the KL alarm and the gate.

The measurements named below are of the tiny preset and its literal objective, see tests/benchmarks/LOG.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline_lib.config import PipelineConfig
from pipeline_lib.config.truncation import EVALUATION_DIALS, Truncated, dial_to_raise
from pipeline_lib.types import EvalReport, IterationRecord, PairedTest, RunResult

NEAR_ZERO_VARIANCE = 10.0  # times audit.min_variance; healthy runs lie near 1, a thousand times the limit
RAPID_RISE = 0.02  # validation accuracy gained per iteration up to the peak
DECLINE = 0.02  # validation accuracy lost since the peak; less is within the noise of a few hundred problems
LOST_SHARE = 0.25  # of the rise, lost since the peak: a small dip after a large gain is not a decline
DIRECT_GAIN = 0.03  # test accuracy gained on the trained dataset before its transfer is worth judging
TRANSFER_SHARE = 0.25  # transfer gain over direct gain; tiny runs carry over 0.6 to 0.85
KL_NEAR_ALARM = 0.5  # of train.kl_alarm
KL_GROWTH = 3.0  # times the first iteration's KL
KL_FLOOR = 0.1  # nats per scored token below which growth is no matter; healthy runs 0.03, collapsing ones 0.08 up
FEW_UPDATES = 10  # fewer are a matter of too little data; more that change nothing, of too small a rate
HIGH_UNUSABLE = 0.2  # of the rollouts or answers: a fifth of the work gives no reward that can be trusted

MEANING_OF_UNUSABLE: dict[Truncated, str] = {
    "wrong": "They count as wrong, so steps are punished for the answer's form or length, not for what they say.",
    "grade": "Those without an answer count as wrong, so steps are punished for the answer's form; those that were cut "
    "off count as what they come to so far, so steps are scored on answers that nobody finished.",
    "ignore": "Those that were cut off are ignored, so figures speak of short answers alone; the others count as "
    "wrong, so steps are punished for the answer's form.",
}


@dataclass(frozen=True, slots=True)
class Signature:
    """One way of failing, as seen in a run.

    Args:
        key: stable name, for tests and links.
        title: what it is called.
        evidence: the numbers that show it, a clause.
        meaning: what it tells, a sentence.
        advice: what to try, a sentence that names the settings.
    """

    key: str
    title: str
    evidence: str
    meaning: str
    advice: str


def failure_signatures(result: RunResult, config: PipelineConfig) -> list[Signature]:
    """Every signature that the run shows, the earliest stage first; none for a healthy run.

    Args:
        result: the run's records, the base first, and its champion.
        config: the run's; the audit's and the KL alarm's limits and the trained dataset are read.
    """
    records, dataset = result.records, config.problems.dataset
    findings = (
        failing_engine(records),
        unusable_answers(records, truncated=config.truncated),
        little_variance(records, config.audit.min_variance),
        taught_nothing(records),
        running_away(records, config.train.kl_alarm),
        worse_than_base(records, dataset),
        rise_then_decline(records, dataset),
        poor_transfer(records, dataset, result.decision.champion),
    )
    return [finding for finding in findings if finding is not None]


def failing_engine(records: Sequence[IterationRecord]) -> Signature | None:
    """Answers that the engine failed to give; had one of them stayed without an answer, there would be no record."""
    failed = [(record.index, stage) for record in records for stage in (record.search, record.evaluate)]
    errors = sum(stage.get("num_errors", 0.0) for _, stage in failed)
    redrawn = sum(stage.get("num_redrawn", 0.0) for _, stage in failed)
    if not errors:
        return None
    where = sorted({index for index, stage in failed if stage.get("num_errors")})
    return Signature(
        "failing-engine",
        "The engine failed to answer",
        f"{errors:.0f} failures in iteration {', '.join(map(str, where))}, {redrawn:.0f} answers drawn again",
        "Each was drawn again from its own seed, so none counts as wrong; where the engine's answers depend on their "
        "company, what was drawn again may favour answers that do not fail.",
        "Look at the engine's log; policy.max_failed_share is the share above which a stage fails.",
    )


def unusable_answers(records: Sequence[IterationRecord], *, truncated: Truncated = "wrong") -> Signature | None:
    """Too many rollouts or answers that were cut off or hold no answer."""
    shares = [share for record in records for share in _unusable_shares(record)]
    worst = max(shares, default=(0.0, "", ""))
    if worst[0] <= HIGH_UNUSABLE:
        return None
    share, kind, where = worst
    return Signature(
        "unusable-answers",
        "Many answers cannot be graded",
        f"{100 * share:.0f} % of {where} {kind}",
        MEANING_OF_UNUSABLE[truncated],
        f"Raise {_dials(records)} where answers are cut off; make "
        "policy.instruction ask for the dataset's answer format where they are not found.",
    )


def little_variance(records: Sequence[IterationRecord], min_variance: float) -> Signature | None:
    """Scores so alike that weighted training has next to nothing to weigh."""
    audits = [(record.index, record.audit) for record in records if record.audit is not None]
    if not audits:
        return None
    index, audit = min(audits, key=lambda item: item[1].variance)
    if audit.variance > NEAR_ZERO_VARIANCE * min_variance:
        return None
    too_hard = audit.num_all_wrong >= audit.num_all_correct
    return Signature(
        "little-variance",
        "Score variance near zero",
        f"iteration {index}: {audit.variance:.2g}, {100 * audit.informative_share:.0f} % of the problems informative",
        "Steps hardly differ in their scores, most often because problems come out all right or all wrong: training "
        "follows noise.",
        "Take easier problems or a stronger policy.model, or raise search.num_simulations."
        if too_hard
        else "Take harder problems, or raise search.temperature: the policy solves most of these every time.",
    )


def taught_nothing(records: Sequence[IterationRecord]) -> Signature | None:
    """A training after which the policy was as good as the one before, so that its accuracy tells nothing."""
    idle = [record for record in records if record.train.get("taught") == 0]
    if not idle:
        return None
    record = min(idle, key=lambda record: record.train["policy_change"])
    updates, tokens = int(record.train["updates"]), int(record.train["scored_tokens"])
    return Signature(
        "taught-nothing",
        "Training could not teach",
        f"iteration {record.index}: {updates} updates on {tokens:,} scored tokens moved log-probabilities by "
        f"{record.train['policy_change']:.2g} nats on average",
        "The next policy answers as the one before did: what was measured is noise, not what the method does.",
        "Search more problems (problems.num_problems), or take ones that the policy solves sometimes; lower "
        "train.tokens_per_update or raise train.num_epochs for more updates."
        if updates < FEW_UPDATES
        else "Raise train.learning_rate, or lower train.kl_beta.",
    )


def running_away(records: Sequence[IterationRecord], kl_alarm: float) -> Signature | None:
    """The policy leaves its reference: the alarm rang, is near, or the KL grows from iteration to iteration."""
    trained = [(record, kl) for record in records if (kl := last_kl(record)) is not None]
    if not trained:
        return None
    record, kl = max(trained, key=lambda item: (item[0].train.get("stopped_by_kl_alarm", 0.0), item[1]))
    index, first = record.index, trained[0][1]
    if record.train.get("stopped_by_kl_alarm"):
        evidence = f"iteration {index}: the alarm at {kl_alarm:.3g} ended training"
    elif kl >= KL_NEAR_ALARM * kl_alarm:
        evidence = f"iteration {index}: {kl:.2f} nats per token, the alarm is at {kl_alarm:.3g}"
    elif kl >= KL_FLOOR and kl >= KL_GROWTH * first:
        evidence = f"{first:.3f} in iteration {trained[0][0].index}, {kl:.3f} nats per token in iteration {index}"
    else:
        return None
    return Signature(
        "kl-running-away",
        "KL running away",
        evidence,
        "Training moves the policy further than the scores justify; text outside the searched steps degrades first.",
        "Lower train.learning_rate or train.num_epochs, raise train.kl_beta, lower train.negative_clip.",
    )


def worse_than_base(records: Sequence[IterationRecord], dataset: str) -> Signature | None:
    """An iteration that is worse than the base beyond doubt: the whole paired interval lies below 0."""
    tests = [(record.index, test) for record in records if (test := _against_base(record, dataset, "validation"))]
    worse = [(index, test) for index, test in tests if test.interval[1] < 0]
    if not worse:
        return None
    index, test = min(worse, key=lambda item: item[1].difference)
    return Signature(
        "worse-than-base",
        "Worse than the base",
        f"iteration {index}: {format_points(test)} on validation",
        "Training destroyed what the base could do; unbounded negative weights are the usual cause.",
        "Lower train.negative_clip (0 keeps positives only), take score.scaling=sqrt, lower train.learning_rate.",
    )


def rise_then_decline(records: Sequence[IterationRecord], dataset: str) -> Signature | None:
    """Validation accuracy that rose fast and fell again, by a good part of the rise."""
    curve = [(record.index, report) for record in records if (report := record.evaluation(dataset, "validation"))]
    if len(curve) < 3:
        return None
    base, last = curve[0][1].accuracy, curve[-1][1].accuracy
    peak_index, peak = max(curve, key=lambda item: (item[1].accuracy, -item[0]))
    rise, decline = peak.accuracy - base, peak.accuracy - last
    if not peak_index or rise < RAPID_RISE * peak_index or decline < max(DECLINE, LOST_SHARE * rise):
        return None
    return Signature(
        "rise-then-decline",
        "Rapid rise, then decline",
        f"{100 * rise:+.1f} points up to iteration {peak_index}, {-100 * decline:+.1f} since",
        "The policy first learns, then overfits its own earlier samples; the champion is the peak, not the end.",
        "Keep problems.fresh_each_iteration, search more problems, train fewer epochs, and keep gate.patience small.",
    )


def poor_transfer(records: Sequence[IterationRecord], dataset: str, champion: int) -> Signature | None:
    """A champion that gains on the trained dataset and next to nothing elsewhere."""
    record = next((record for record in records if record.index == champion), None)
    direct = _against_base(record, dataset, "test") if record else None
    if record is None or direct is None or direct.difference < DIRECT_GAIN:
        return None
    others = [test for test in record.paired if test.split == "test" and test.against == "base"]
    weak = [t for t in others if t.dataset != dataset and t.difference < TRANSFER_SHARE * direct.difference]
    if not weak:
        return None
    worst = min(weak, key=lambda test: test.difference)
    return Signature(
        "poor-transfer",
        "Transfer gain far below direct gain",
        f"{worst.dataset} {100 * worst.difference:+.1f} points, {dataset} {100 * direct.difference:+.1f}",
        "What was learned is the dataset's form, not the reasoning that the datasets share.",
        "Train on a mix of datasets (problems.dataset=file), for fewer epochs, with a lower train.lora_rank or a "
        "higher train.kl_beta.",
    )


def format_points(test: PairedTest) -> str:
    """A paired difference in points with its 95 % interval.

    Example: a difference of 0.04 with interval (0.01, 0.07) is ``+4.0 points [1.0, 7.0]``.
    """
    low, high = test.interval
    return f"{100 * test.difference:+.1f} points [{100 * low:.1f}, {100 * high:.1f}]"


def last_kl(record: IterationRecord) -> float | None:
    """KL at the end of an iteration's training, else its mean, nats per scored token; None where not measured."""
    kl = record.train.get("last_kl", record.train.get("kl", math.nan))
    return None if math.isnan(kl) else kl


def _unusable_shares(record: IterationRecord) -> Iterator[tuple[float, str, str]]:
    if record.audit is not None:
        where = f"iteration {record.index}'s rollouts"
        yield record.audit.unparsed_share, "hold no answer that can be read", where
        yield record.audit.truncated_share, "were cut off", where
    for report in record.evaluations:
        where = f"{'the base' if record.index == 0 else f'iteration {record.index}'}'s {report.dataset} answers"
        # A truncated answer is mostly unparsed as well: the one kind is the other's cause.
        yield _unparsed_share(report), "hold no answer that can be read", where
        yield report.num_truncated / report.num_problems, "were cut off", where


def _dials(records: Sequence[IterationRecord]) -> str:
    """The settings of the limits that cut off most rollouts, and most answers."""
    rollouts, answers = Counter[str](), Counter[str]()
    for record in records:
        rollouts.update({} if record.audit is None else record.audit.cutoffs)
        for report in record.evaluations:
            answers.update(report.cutoffs)
    return " and ".join(dict.fromkeys((dial_to_raise(rollouts), dial_to_raise(answers, EVALUATION_DIALS))))


def _unparsed_share(report: EvalReport) -> float:
    """Of the answers that are not ignored, those that hold no answer though no limit cut them off."""
    counted_and_cut = report.num_truncated - report.num_ignored
    return max(0, report.num_unparsed - counted_and_cut) / max(1, report.num_problems - report.num_ignored)


def _against_base(record: IterationRecord, dataset: str, split: str) -> PairedTest | None:
    wanted = (dataset, split, "base")
    return next((t for t in record.paired if (t.dataset, t.split, t.against) == wanted), None)
