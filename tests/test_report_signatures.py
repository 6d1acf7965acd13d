from __future__ import annotations

import pytest
from report_fixtures import OTHER, make_audit, make_record, make_report, make_result

from deployments.command.output.closing import notice_lines
from pipeline_lib.config import PipelineConfig
from pipeline_lib.report.sanity import single_iteration_checks
from pipeline_lib.report.signatures import Signature, failure_signatures, unusable_answers
from pipeline_lib.types import IterationRecord

CONFIG = PipelineConfig()


def seen(*records: IterationRecord, champion: int = 1) -> dict[str, Signature]:
    found = failure_signatures(make_result(records, champion=champion), CONFIG)
    return {signature.key: signature for signature in found}


def curve(*validation: float) -> list[IterationRecord]:
    return [make_record(i, accuracy) for i, accuracy in enumerate(validation)]


def test_a_healthy_run_shows_none() -> None:
    assert seen(*curve(0.5, 0.7, 0.72, 0.71), champion=2) == {}
    assert seen(make_record(0)) == {}


@pytest.mark.parametrize(("variance", "named"), [(0.0099, True), (0.011, False)])
def test_variance_near_zero(variance: float, named: bool) -> None:
    found = seen(make_record(0), make_record(1, audit=make_audit(variance=variance, num_all_wrong=5)))
    assert ("little-variance" in found) == named
    if named:
        assert found["little-variance"].evidence == "iteration 1: 0.0099, 40 % of the problems informative"
        assert "easier" in found["little-variance"].advice


def test_little_variance_because_all_is_solved_asks_for_harder_problems() -> None:
    audit = make_audit(passed=False, variance=0.0, num_all_correct=9, num_all_wrong=0)
    found = seen(make_record(0), make_record(1, audit=audit, passed=False), champion=0)
    assert "harder" in found["little-variance"].advice


@pytest.mark.parametrize(
    ("validation", "named"),
    [
        ((0.5, 0.6, 0.57), True),  # 10 up, 3 lost
        ((0.5, 0.6, 0.58), False),  # 2 lost are less than a quarter of the rise
        ((0.5, 0.51, 0.48), False),  # 1 point up is no rapid rise
        ((0.5, 0.53, 0.56, 0.53), True),  # 3 points in each of two iterations
        ((0.5, 0.51, 0.515, 0.53, 0.5), False),  # 3 points in three iterations are slow
        ((0.5, 0.6), False),
    ],
)
def test_rapid_rise_then_decline(validation: tuple[float, ...], named: bool) -> None:
    assert ("rise-then-decline" in seen(*curve(*validation))) == named


def test_the_rise_and_the_decline_are_told_in_points() -> None:
    found = seen(*curve(0.5, 0.6, 0.55, 0.52))["rise-then-decline"]
    assert found.evidence == "+10.0 points up to iteration 1, -8.0 since"


def test_worse_than_the_base_only_when_the_whole_interval_is_below_it() -> None:
    assert "worse-than-base" in seen(*curve(0.5, 0.46), champion=0)
    assert "worse-than-base" not in seen(*curve(0.5, 0.48), champion=0)
    found = seen(*curve(0.5, 0.46, 0.40), champion=0)["worse-than-base"]
    assert found.evidence == "iteration 2: -10.0 points [-13.0, -7.0] on validation"


@pytest.mark.parametrize(
    ("direct", "transfer", "named"),
    [(0.2, 0.04, True), (0.2, 0.06, False), (0.02, -0.1, False), (0.1, -0.1, True)],
)
def test_poor_transfer_is_judged_at_the_champion(direct: float, transfer: float, named: bool) -> None:
    champion = make_record(1, direct=direct, transfer=transfer)
    assert ("poor-transfer" in seen(make_record(0), champion)) == named
    assert "poor-transfer" not in seen(make_record(0), champion, champion=0)


@pytest.mark.parametrize(
    ("train", "evidence"),
    [
        ([{"kl": 0.02, "stopped_by_kl_alarm": 1.0}], "iteration 1: the alarm at 1 ended training"),
        ([{"kl": 0.1, "last_kl": 0.6}], "iteration 1: 0.60 nats per token, the alarm is at 1"),
        ([{"kl": 0.03}, {"kl": 0.12}], "0.030 in iteration 1, 0.120 nats per token in iteration 2"),
        ([{"kl": 0.06}, {"kl": 0.12}], None),
        ([{"kl": 0.01}, {"kl": 0.09}], None),
        ([{}], None),
    ],
)
def test_kl_running_away(train: list[dict[str, float]], evidence: str | None) -> None:
    records = [make_record(i, train=metrics) for i, metrics in enumerate(train, 1)]
    found = seen(make_record(0), *records).get("kl-running-away")
    assert (found and found.evidence) == evidence


IDLE = {"taught": 0.0, "policy_change": 0.0012, "updates": 2.0, "scored_tokens": 1500.0, "kl": 0.0}


def test_a_training_that_could_not_teach_is_named() -> None:
    found = seen(make_record(0), make_record(1, train={**IDLE, "taught": 1.0}), make_record(2, train=IDLE), champion=0)
    assert found["taught-nothing"].evidence == (
        "iteration 2: 2 updates on 1,500 scored tokens moved log-probabilities by 0.0012 nats on average"
    )
    assert "train.tokens_per_update" in found["taught-nothing"].advice
    many = seen(make_record(0), make_record(1, train={**IDLE, "updates": 60.0}), champion=0)["taught-nothing"]
    assert "train.learning_rate" in many.advice
    assert "taught-nothing" not in seen(make_record(0), make_record(1))  # a record of before it was measured


def test_a_training_that_could_not_teach_is_said_in_the_closing_lines() -> None:
    lines = notice_lines(make_result([make_record(0), make_record(1, train=IDLE)], champion=0), CONFIG)
    assert lines[0].startswith("noticed: training could not teach (iteration 1: 2 updates on 1,500 scored tokens ")


def test_answers_that_cannot_be_graded_are_told_by_their_cause() -> None:
    cut = seen(make_record(0), make_record(1, audit=make_audit(truncated_share=0.3)))["unusable-answers"]
    assert cut.evidence == "30 % of iteration 1's rollouts were cut off"
    reports = (make_report(OTHER, "test", 0.5, num_unparsed=40, num_truncated=10),)
    unparsed = seen(make_record(0).model_copy(update={"evaluations": reports}), champion=0)["unusable-answers"]
    assert unparsed.evidence == "30 % of the base's tiny-algebra answers hold no answer that can be read"
    assert seen(make_record(0), make_record(1, audit=make_audit(truncated_share=0.2))) == {}
    ignored = [r.model_copy(update={"num_truncated": 10, "num_ignored": 10}) for r in reports]
    record = make_record(0).model_copy(update={"evaluations": tuple(ignored)})
    found = unusable_answers([record], truncated="ignore")
    assert found is not None
    assert found.evidence == "44 % of the base's tiny-algebra answers hold no answer that can be read"  # 40 of 90


@pytest.mark.parametrize(("truncated", "all_wrong"), [("wrong", True), ("grade", False), ("ignore", False)])
def test_what_cut_answers_count_as_is_told_as_it_is_set(truncated: str, all_wrong: bool) -> None:
    found = unusable_answers([make_record(1, audit=make_audit(truncated_share=0.3))], truncated=truncated)
    assert found is not None
    assert found.meaning.startswith("They count as wrong") is all_wrong


def test_one_iteration_is_a_sanity_check() -> None:
    result = make_result([make_record(0), make_record(1, direct=0.2, transfer=0.02)])
    checks = {check.name: (check.verdict, check.evidence) for check in single_iteration_checks(result, CONFIG)}
    assert checks == {
        "gradable": ("yes", "99.0 % of them"),
        "signal": ("yes", "4 of 10 problems are informative"),
        "stays near": ("yes", "KL 0.062 nats per token, alarm at 1"),
        "learns": ("yes", "+20.0 points [17.0, 23.0]"),
        "carries over": ("open", "+2.0 points [-1.0, 5.0], within the noise"),
    }
    assert single_iteration_checks(make_result(curve(0.5, 0.6, 0.7)), CONFIG) == []


def test_a_single_iteration_that_the_audit_stopped_says_what_is_open() -> None:
    result = make_result([make_record(0), make_record(1, passed=False)], champion=0)
    verdicts = {check.name: check.verdict for check in single_iteration_checks(result, CONFIG)}
    assert verdicts == {"gradable": "yes", "signal": "no", "stays near": "open"}


def test_the_terminal_says_it_in_a_line_each() -> None:
    assert notice_lines(make_result(curve(0.5, 0.6, 0.62)), CONFIG) == []
    assert notice_lines(make_result(curve(0.5, 0.6, 0.55)), CONFIG) == [
        "noticed: rapid rise, then decline (+10.0 points up to iteration 1, -5.0 since)",
        "what that means and what to try: coppice report",
    ]
    assert notice_lines(make_result(curve(0.5, 0.6)), CONFIG) == [
        "sanity check: gradable yes, signal yes, stays near yes, learns open, carries over open",
        "one iteration cannot tell whether a second one gains again or declines: 2 to 4 can",
    ]
