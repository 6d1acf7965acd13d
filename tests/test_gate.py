import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.config import GateConfig
from pipeline_lib.gate import (
    GateError,
    best_so_far,
    calibration_grid,
    decide,
    iterations_without_gain,
    policy_to_go_on_from,
    replay,
)
from pipeline_lib.types import AuditReport, EvalReport, Histogram, IterationRecord, PairedTest, PolicyRef


def report(accuracy, *, split="validation", dataset="tiny-word", interval=None):
    return EvalReport(
        dataset=dataset,
        split=split,
        policy_id="p",
        num_problems=1000,
        num_correct=round(1000 * accuracy),
        num_unparsed=0,
        num_truncated=0,
        accuracy=accuracy,
        interval=interval or (accuracy - 0.05, accuracy + 0.05),
    )


def record(index, *evaluations, audit=None):
    policy = PolicyRef(policy_id=f"p{index}", base_model="tiny", iteration=index)
    return IterationRecord(index=index, policy=policy, evaluations=evaluations, audit=audit)


def records(*accuracies):
    return [record(i, report(accuracy)) for i, accuracy in enumerate(accuracies)]


def audit(*, passed):
    return AuditReport(
        num_problems=4,
        num_informative=0,
        num_all_correct=0,
        num_all_wrong=4,
        informative_share=0,
        num_steps=8,
        num_scored_steps=0,
        variance=0,
        variance_by_depth={},
        variance_by_visits={},
        positive_mass=0,
        negative_mass=0,
        unparsed_share=0,
        truncated_share=0,
        histogram=Histogram(edges=(-1, 1), counts=(8,)),
        remedied=True,
        passed=passed,
        reason="nothing informative",
        advice="" if passed else "take easier problems",
    )


def test_the_base_alone_goes_on():
    decision = decide(records(0.4), GateConfig())
    assert (decision.proceed, decision.champion) == (True, 0)
    assert decision.reason == "validation accuracy 40.0%, the base"


def test_rising_accuracy_goes_on_with_the_last_as_champion():
    decision = decide(records(0.4, 0.5, 0.6), GateConfig())
    assert (decision.proceed, decision.champion) == (True, 2)
    assert decision.reason == "validation accuracy 60.0%, the best so far"


def test_the_champion_is_the_best_and_not_the_last():
    decision = decide(records(0.4, 0.6, 0.5), GateConfig(patience=1))
    assert (decision.proceed, decision.champion) == (False, 1)
    assert decision.reason == (
        "validation accuracy 50.0% after iteration 2: no gain of more than 0.0% over 60.0% of iteration 1 for 1 "
        "iteration (patience 1)"
    )


def test_among_equals_the_earliest_is_champion_and_an_equal_is_no_gain():
    decision = decide(records(0.4, 0.6, 0.6), GateConfig(patience=2))
    assert (decision.proceed, decision.champion) == (True, 1)
    assert not decide(records(0.4, 0.4), GateConfig()).proceed


@pytest.mark.parametrize(("patience", "proceed"), [(1, False), (2, False), (3, True)])
def test_patience_counts_iterations_in_a_row_without_a_gain(patience, proceed):
    assert decide(records(0.4, 0.6, 0.5, 0.55), GateConfig(patience=patience)).proceed is proceed


def test_a_gain_starts_patience_anew():
    assert decide(records(0.4, 0.6, 0.5, 0.7, 0.6), GateConfig(patience=2)).proceed


def test_the_docstring_example():
    reports = [report(accuracy) for accuracy in (0.5, 0.6, 0.6, 0.59)]
    assert iterations_without_gain(reports, GateConfig()) == 2


@pytest.mark.parametrize(("before", "after"), [(0.7, 0.8), (0.1, 0.2), (0.3, 0.4), (0.6, 0.7)])
def test_a_gain_of_just_min_gain_is_none_whatever_the_rounding(before, after):
    assert not decide(records(before, after), GateConfig(min_gain=0.1)).proceed
    assert decide(records(before, after + 0.001), GateConfig(min_gain=0.1)).proceed


def test_small_gains_add_up_against_the_last_that_counted():
    config = GateConfig(min_gain=0.02, patience=2)
    assert not decide(records(0.50, 0.51, 0.52), config).proceed
    assert decide(records(0.50, 0.51, 0.53), config).proceed
    assert decide(records(0.50, 0.51, 0.50), config).champion == 1  # no gain, and yet the best


def test_require_interval_asks_for_more_than_the_upper_limit_of_the_best():
    base = record(0, report(0.5, interval=(0.45, 0.55)))
    config = GateConfig(require_interval=True)
    stopped = decide([base, record(1, report(0.55))], config)
    assert (stopped.proceed, stopped.champion) == (False, 1)
    assert "beyond the interval" in stopped.reason
    assert decide([base, record(1, report(0.551))], config).proceed


def paired(low, *, against="base", iteration=None, dataset="tiny-word", split="validation"):
    return PairedTest(
        dataset=dataset,
        split=split,
        against=against,
        against_iteration=iteration,
        num_fixed=0,
        num_broken=0,
        difference=low + 0.02,
        interval=(low, low + 0.04),
        p_value=0.5,
    )


def with_tests(index, accuracy, *tests):
    return record(index, report(accuracy)).model_copy(update={"paired": tests})


INTERVAL = GateConfig(require_interval=True, patience=1)


def test_a_gain_that_the_paired_interval_is_sure_of_counts_though_both_own_intervals_overlap():
    base = record(0, report(0.5, interval=(0.45, 0.55)))
    sure = decide([base, with_tests(1, 0.53, paired(0.01, iteration=0))], INTERVAL)
    assert (sure.proceed, sure.champion, sure.reason) == (True, 1, "validation accuracy 53.0%, the best so far")
    unsure = decide([base, with_tests(1, 0.58, paired(-0.01, iteration=0))], INTERVAL)
    assert (unsure.proceed, unsure.champion) == (False, 1)
    assert unsure.reason == (
        "validation accuracy 58.0% after iteration 1: no gain of more than 0.0% beyond the interval over 50.0% of the "
        "base for 1 iteration (patience 1); best so far 58.0% in iteration 1"
    )


def test_the_paired_interval_is_that_against_the_last_iteration_that_gained():
    curve = [
        record(0, report(0.5)),
        with_tests(1, 0.6, paired(0.05, iteration=0)),
        with_tests(2, 0.59, paired(0.04, iteration=0), paired(-0.06, against="previous", iteration=1)),
        with_tests(
            3,
            0.63,
            paired(0.08, iteration=0),
            paired(0.02, against="previous", iteration=2),
            paired(-0.01, against="best", iteration=1),
        ),
    ]
    assert not decide(curve, GateConfig(require_interval=True, patience=2)).proceed
    curve[3] = with_tests(3, 0.63, paired(0.01, against="best", iteration=1))
    assert decide(curve, GateConfig(require_interval=True, patience=2)).proceed
    [trial] = replay(curve, [GateConfig(require_interval=True, patience=3)])
    assert trial.to_beat == pytest.approx({1: 0.55, 2: 0.65, 3: 0.62})  # accuracy less the interval's lower limit


def test_small_gains_that_no_interval_is_sure_of_add_up():
    curve = [
        record(0, report(0.50)),
        with_tests(1, 0.52, paired(-0.01, iteration=0)),
        with_tests(2, 0.54, paired(0.01, iteration=0), paired(-0.01, against="best", iteration=1)),
    ]
    assert decide(curve, GateConfig(require_interval=True, patience=2)).proceed


def test_only_the_tests_of_the_validation_split_and_its_dataset_are_read():
    base = record(0, report(0.5, interval=(0.45, 0.55)))
    other = [paired(0.3, iteration=0, split="test"), paired(0.3, iteration=0, dataset="tiny-algebra")]
    assert not decide([base, with_tests(1, 0.53, *other)], INTERVAL).proceed


def test_records_of_the_first_version_have_tests_that_name_no_iteration():
    curve = [record(0, report(0.5)), with_tests(1, 0.52, paired(0.01))]
    assert decide(curve, INTERVAL).proceed
    curve.append(with_tests(2, 0.54, paired(0.03), paired(-0.01, against="previous")))
    assert not decide(curve, INTERVAL).proceed
    curve.append(with_tests(3, 0.55, paired(0.04), paired(-0.01, against="previous")))  # none against iteration 1
    decision = decide(curve, GateConfig(require_interval=True, patience=3))
    assert decision.proceed
    assert decision.reason.endswith("; against iteration 1 by its own interval alone: no paired test is on record")


def test_records_without_the_later_fields_are_read():
    old = with_tests(1, 0.52, paired(0.01)).model_dump(mode="json")
    del old["parent"], old["paired"][0]["against_iteration"], old["evaluations"][0]["sampled_interval"]
    assert IterationRecord.model_validate(old) == with_tests(1, 0.52, paired(0.01))


def test_a_failed_audit_stops_with_its_reason_and_keeps_the_champion():
    decision = decide([*records(0.4, 0.6, 0.5), record(3, audit=audit(passed=False))], GateConfig(patience=5))
    assert (decision.proceed, decision.champion) == (False, 1)
    assert decision.reason == (
        "validation accuracy 60.0% in iteration 1, the best so far; audit of iteration 3: nothing informative"
    )


def test_a_stop_names_what_was_to_be_beaten_and_the_champion_where_that_is_another():
    decision = decide(records(0.50, 0.51, 0.50), GateConfig(min_gain=0.02, patience=2))
    assert decision.reason == (
        "validation accuracy 50.0% after iteration 2: no gain of more than 2.0% over 50.0% of the base for 2 "
        "iterations (patience 2); best so far 51.0% in iteration 1"
    )
    stopped = decide([*records(0.4), record(1, audit=audit(passed=False))], GateConfig())
    assert stopped.reason == "validation accuracy 40.0%, the base; audit of iteration 1: nothing informative"


def test_the_best_so_far_is_the_earliest_of_the_highest():
    assert best_so_far(records(0.4, 0.6, 0.6)).index == 1
    assert best_so_far([*records(0.4, 0.3), record(2, audit=audit(passed=False))]).index == 0


@pytest.mark.parametrize(
    ("accuracies", "config", "start"),
    [
        ((0.4, 0.6, 0.5), GateConfig(patience=3), "p1"),
        ((0.4, 0.6, 0.5), GateConfig(patience=3, continue_from="last"), "p2"),
        ((0.4, 0.3), GateConfig(patience=3), "p0"),
        ((0.4, 0.6), GateConfig(), "p1"),
        ((0.4,), GateConfig(continue_from="last"), "p0"),
    ],
)
def test_the_next_iteration_starts_from_the_best_or_from_the_last(accuracies, config, start):
    curve = records(*accuracies)
    assert policy_to_go_on_from(curve, decide(curve, config), config).policy_id == start


def test_a_passed_audit_changes_nothing():
    assert decide([*records(0.4), record(1, report(0.5), audit=audit(passed=True))], GateConfig()).proceed


def test_the_test_split_and_other_datasets_are_never_looked_at():
    first = [record(0, report(0.9, split="test"), report(0.4), report(0.9, dataset="tiny-algebra"))]
    second = record(1, report(0.1, split="test"), report(0.1, dataset="tiny-algebra"), report(0.5))
    decision = decide([*first, second], GateConfig(), dataset="tiny-word")
    assert (decision.proceed, decision.champion) == (True, 1)


@pytest.mark.parametrize(
    ("bad", "dataset", "message"),
    [
        ([], None, "no iteration on record"),
        ([record(0, report(0.5, split="test"))], None, "iteration 0 has no validation accuracy on any dataset"),
        ([record(0, report(0.5))], "gsm8k", "iteration 0 has no validation accuracy on gsm8k"),
        ([*records(0.5), record(1)], None, "iteration 1 has no validation accuracy"),
        ([record(0, audit=audit(passed=False))], None, "no iteration on record was evaluated"),
    ],
)
def test_records_that_cannot_be_judged_are_refused(bad, dataset, message):
    with pytest.raises(GateError, match=message):
        decide(bad, GateConfig(), dataset=dataset)


@given(st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=1, max_size=6), st.integers(1, 3))
def test_the_champion_is_always_the_earliest_maximum_and_stopping_means_patience_ran_out(accuracies, patience):
    decision = decide(records(*accuracies), GateConfig(patience=patience))
    assert decision.champion == accuracies.index(max(accuracies))
    assert decision.proceed is (len(accuracies) - 1 - decision.champion < patience)


def test_replay_tells_where_each_gate_had_stopped_and_what_it_had_taken():
    curve = records(0.5, 0.6, 0.61, 0.60, 0.66)
    gates = [GateConfig(min_gain=gain, patience=patience) for gain in (0.0, 0.02) for patience in (1, 2, 3)]
    found = {(t.min_gain, t.patience): (t.stopped_after, t.champion) for t in replay(curve, gates)}
    assert found == {
        (0.0, 1): (3, 2),
        (0.0, 2): (None, 4),
        (0.0, 3): (None, 4),
        (0.02, 1): (2, 2),
        (0.02, 2): (3, 2),
        (0.02, 3): (None, 4),
    }
    strict = replay(curve, gates)[-1]
    assert strict.to_beat == pytest.approx({1: 0.52, 2: 0.62, 3: 0.62, 4: 0.62})  # 61 % never counted as a gain


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=6),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.05, 0.1]),
    st.booleans(),
)
def test_replay_agrees_with_a_run_under_that_gate(accuracies, patience, min_gain, require_interval):
    curve = records(*(accuracy / 20 for accuracy in accuracies))
    config = GateConfig(patience=patience, min_gain=min_gain, require_interval=require_interval)
    [trial] = replay(curve, [config])
    length = 1
    while (decision := decide(curve[:length], config)).proceed and length < len(curve):
        length += 1
    assert trial.champion == decision.champion
    assert trial.stopped_after == (None if decision.proceed else length - 1)
    assert set(trial.to_beat) == set(range(1, len(curve)))


def test_replay_stops_where_the_audit_did():
    curve = [*records(0.5, 0.6), record(2, audit=audit(passed=False))]
    [trial] = replay(curve, [GateConfig(patience=3)])
    assert (trial.stopped_after, trial.champion) == (2, 1)
    assert trial.to_beat == pytest.approx({1: 0.5})


def test_the_calibration_grid_holds_the_gate_itself():
    own = GateConfig(min_gain=0.03, patience=4, require_interval=True)
    grid = calibration_grid(own)
    assert own in grid
    assert len(grid) == len({(g.min_gain, g.patience) for g in grid}) == 6 * 4
    assert len(calibration_grid(GateConfig())) == 5 * 3


@pytest.mark.parametrize("require_interval", [False, True])
def test_a_policy_that_is_cut_off_on_hard_problems_gains_nothing_by_it(require_interval):
    """Of 1000 problems the base solves 600; the next one answers half of them and solves 450 of these."""
    cut = report(0.9).model_copy(update={"num_correct": 450, "num_truncated": 500, "num_ignored": 500})
    curve = [record(0, report(0.6)), record(1, cut)]
    decision = decide(curve, GateConfig(patience=1, require_interval=require_interval))
    assert (decision.proceed, decision.champion) == (False, 0)
    assert decision.reason.startswith("validation accuracy 45.0% after iteration 1: no gain of more than 0.0%")
    assert decision.reason.endswith("; of all problems, ignored answers among them")
    assert best_so_far(curve).index == 0
    better = [record(0, cut), record(1, report(0.6, interval=(0.55, 0.65)))]
    assert decide(better, GateConfig(patience=1, require_interval=require_interval)).champion == 1
    assert decide(better, GateConfig(patience=1, require_interval=require_interval)).proceed
