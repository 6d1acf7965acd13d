import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_fixtures import flat_tree, make_tree, trees

from pipeline_lib.config import AuditConfig, ScoreConfig
from pipeline_lib.score import score_tree
from pipeline_lib.score.score_audit import auc, audit_scores, remedy_may_help
from pipeline_lib.types import AuditReport, Outcome, Remedy

CORRECT, WRONG, UNPARSED, TRUNCATED = Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED, Outcome.TRUNCATED


def audit(*searched, config=None, earlier=(), oracle=None):
    scores = [score_tree(tree, ScoreConfig()) for tree in searched]
    return audit_scores(searched, scores, config or AuditConfig(), earlier=earlier, step_is_right=oracle)


def test_every_number_of_a_small_iteration_worked_by_hand():
    mixed = make_tree((-1, 4, 3), (0, 3, 3), (0, 1, 0, WRONG), (1, 3, 3, CORRECT))  # scores 3, -1, 0
    report = audit(mixed, flat_tree(CORRECT, CORRECT), flat_tree(UNPARSED, TRUNCATED, WRONG, WRONG))
    assert (report.num_problems, report.num_informative, report.num_all_correct, report.num_all_wrong) == (3, 1, 1, 1)
    assert report.informative_share == pytest.approx(1 / 3)
    assert (report.num_steps, report.num_scored_steps) == (9, 2)
    assert report.variance == pytest.approx(10 / 9 - (2 / 9) ** 2)
    assert report.variance_by_depth == pytest.approx({1: 10 / 8 - (2 / 8) ** 2, 2: 0})
    assert report.variance_by_visits == pytest.approx({"1": 1 / 7 - (1 / 7) ** 2, "2-3": 2.25})
    assert (report.positive_mass, report.negative_mass) == (3, -1)
    assert (report.unparsed_share, report.truncated_share) == (0.1, 0.1)  # of 4 + 2 + 4 rollouts
    assert report.rollouts == {"correct": 5, "wrong": 3, "unparsed": 1, "timeout": 0, "truncated": 1}
    assert sum(report.histogram.counts) == 9
    assert (report.histogram.edges[0], report.histogram.edges[-1]) == (-3, 3)
    assert report.histogram.counts[20] == 7  # the middle bin holds the zeros
    assert (report.passed, report.advice, report.oracle) == (True, "", {})
    assert report.reason == "33.3% of 3 problems are informative and the scores' variance is 1.06"


def test_all_wrong_stops_and_advises_easier_problems():
    report = audit(flat_tree(WRONG, WRONG), flat_tree(WRONG))
    assert not report.passed
    assert report.reason == (
        "nothing informative: 0 of 2 problems (0.0%, at least 5.0%) have right and wrong rollouts; "
        "2 are all wrong, 0 all right"
    )
    assert report.advice == "take easier problems or a stronger policy.model, or raise search.num_simulations"
    assert report.variance == 0


def test_all_right_stops_and_advises_harder_problems():
    report = audit(flat_tree(CORRECT, CORRECT))
    assert not report.passed
    assert "0 are all wrong, 1 all right" in report.reason
    assert report.advice == "take harder problems: the policy solves these every time"


def test_unparsed_rollouts_stop_and_advise_the_answer_format():
    report = audit(flat_tree(UNPARSED, UNPARSED))
    assert not report.passed
    assert report.reason == (
        "100.0% of the rollouts have no answer that can be graded (at most 90.0%): nothing informative"
    )
    assert report.advice.startswith("check policy.instruction")


def test_truncated_rollouts_stop_and_advise_more_tokens():
    report = audit(flat_tree(TRUNCATED, TRUNCATED, UNPARSED))
    assert not report.passed
    assert report.advice.startswith("raise search.max_new_tokens")


def test_half_unusable_and_nothing_informative_advises_on_the_format_and_not_on_difficulty():
    assert audit(flat_tree(UNPARSED, UNPARSED, WRONG)).advice.startswith("check policy.instruction")
    assert audit(flat_tree(UNPARSED, WRONG)).advice.startswith("take easier problems")


def test_too_many_unusable_rollouts_stop_even_when_some_problem_is_informative():
    report = audit(flat_tree(CORRECT, *[UNPARSED] * 19))
    assert not report.passed
    assert report.reason.endswith(": 1 of 1 problems are informative")


def test_rollouts_that_the_engine_gave_up_on_count_as_truncated():
    nothing = make_tree((-1, 4, 0))  # four draws at the root, not one token
    report = audit(nothing)
    assert report.truncated_share == 1
    assert report.advice.startswith("raise search.max_new_tokens")
    assert (report.num_steps, report.variance, report.variance_by_depth, report.variance_by_visits) == (0, 0, {}, {})
    assert sum(report.histogram.counts) == 0


def test_a_tree_without_any_rollout_is_neither_right_nor_wrong():
    report = audit(make_tree((-1, 0, 0)))
    assert (report.num_all_wrong, report.num_all_correct, report.unparsed_share, report.passed) == (0, 0, 0, False)


def test_informative_problems_whose_scores_hardly_vary_stop():
    report = audit(flat_tree(CORRECT, WRONG), config=AuditConfig(min_variance=2))
    assert not report.passed
    assert report.reason == "the scores' variance is 1 (at least 2)"
    assert "search.num_simulations" in report.advice


def test_scores_that_are_all_zero_stop_even_without_a_threshold():
    tree = flat_tree(CORRECT, WRONG)
    scores = [score_tree(tree, ScoreConfig(min_visits=2))]
    report = audit_scores([tree], scores, AuditConfig(min_variance=0))
    assert (report.num_informative, report.num_scored_steps, report.passed) == (1, 0, False)
    assert "score.min_visits" in report.advice


@pytest.mark.parametrize(("num_wrong", "passed"), [(19, True), (20, False)])
def test_the_informative_share_must_reach_its_threshold(num_wrong, passed):
    searched = [flat_tree(CORRECT, WRONG), *[flat_tree(WRONG)] * num_wrong]
    assert audit(*searched).passed is passed  # 1 of 20 is 5 %


def test_a_remedied_audit_says_what_the_remedy_did_when_it_stops():
    report = audit(flat_tree(WRONG, WRONG), earlier=[flat_tree(WRONG)])
    assert report.remedied
    assert report.remedy == Remedy(num_problems=1, num_rollouts=1, num_informative=0)
    assert report.reason.startswith(
        "nothing informative even after 1 problem was searched again with 1 new rollout and 0 became informative:"
    )


def test_a_remedied_audit_says_what_the_remedy_did_when_it_passes():
    before = [flat_tree(WRONG, problem_id="a"), flat_tree(CORRECT, problem_id="b"), flat_tree(WRONG, problem_id="c")]
    after = [
        flat_tree(WRONG, CORRECT, WRONG, problem_id="a"),
        flat_tree(CORRECT, WRONG, problem_id="b"),
        flat_tree(WRONG, WRONG, problem_id="c"),
    ]
    report = audit(*after, earlier=before)
    assert report.passed
    assert report.remedy == Remedy(num_problems=3, num_rollouts=4, num_informative=2)
    assert report.reason.endswith("; 3 problems were searched again with 4 new rollouts and 2 became informative")


def test_a_remedy_that_added_nothing_says_so():
    tree = flat_tree(WRONG)
    assert "searched again with 0 new rollouts and 0 became informative" in audit(tree, earlier=[tree]).reason


def test_informative_problems_are_not_among_those_searched_again():
    kept, wrong = flat_tree(CORRECT, WRONG, problem_id="a"), flat_tree(WRONG, problem_id="b")
    report = audit(kept, flat_tree(WRONG, WRONG, problem_id="b"), earlier=[kept, wrong])
    assert report.remedy == Remedy(num_problems=1, num_rollouts=1, num_informative=0)


@pytest.mark.parametrize(
    ("searched", "config", "helps"),
    [
        ([flat_tree(WRONG), flat_tree(CORRECT)], {}, True),  # no problem with both
        ([flat_tree(CORRECT, WRONG)], {"min_variance": 2}, False),  # every problem is informative already
        ([flat_tree(CORRECT, WRONG), flat_tree(WRONG)], {"min_variance": 2}, True),
        ([flat_tree(TRUNCATED, TRUNCATED)], {}, False),  # more of them would be cut off, too
        ([flat_tree(UNPARSED, UNPARSED, WRONG)], {}, False),
        ([flat_tree(UNPARSED, WRONG)], {}, True),
        ([flat_tree(CORRECT, *[UNPARSED] * 19), flat_tree(WRONG)], {}, False),
        ([flat_tree(CORRECT, WRONG)], {}, False),  # it passed
    ],
)
def test_the_remedy_runs_only_where_more_simulations_can_help(searched, config, helps):
    config = AuditConfig(**config)
    report = audit(*searched, config=config)
    assert remedy_may_help(report, config) is helps
    assert not remedy_may_help(audit(*searched, config=config, earlier=searched), config)
    assert not remedy_may_help(report, config.model_copy(update={"remedy": False}))


def test_an_audit_reads_back_from_json_and_without_the_later_fields():
    report = audit(flat_tree(CORRECT, WRONG), oracle=lambda tree: np.array([True, True, False]))
    assert AuditReport.model_validate_json(report.model_dump_json()) == report
    old = report.model_dump(mode="json")
    del old["remedy"]
    assert AuditReport.model_validate(old) == report


@pytest.mark.parametrize(
    ("num_trees", "scores", "message"),
    [
        (0, [], "0 trees and 0 score arrays"),
        (1, [], "1 trees and 0 score arrays"),
        (1, [np.zeros(2)], "d/train/0 needs 3 finite scores"),
        (1, [np.array([0.0, np.nan, 0.0])], "d/train/0 needs 3 finite scores"),
    ],
)
def test_scores_that_do_not_fit_are_refused(num_trees, scores, message):
    with pytest.raises(ValueError, match=message):
        audit_scores([flat_tree(CORRECT, WRONG)] * num_trees, scores, AuditConfig())


def test_the_auc_is_the_share_of_pairs_in_the_right_order():
    assert auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False])) == 1
    assert auc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
    # Positives 3 and 1 against 2 and 1: right, right, wrong, tie.
    assert auc(np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False])) == 2.5 / 4
    assert auc(np.array([1.0, 2.0]), np.array([True, True])) is None
    assert auc(np.zeros(0), np.zeros(0, dtype=bool)) is None


def test_the_oracle_says_how_well_low_scores_find_wrong_steps():
    # Scores by hand: node 1: 4 (3/4 - 1/4) = 2, node 2: -2; below node 1: node 3: 2 (1 - 1/2) = 1, node 4: -1.
    tree = make_tree((-1, 8, 4), (0, 4, 3), (0, 4, 1), (1, 2, 2, CORRECT), (1, 2, 1, CORRECT), (2, 4, 1, CORRECT))
    right = np.array([True, True, False, False, True, False])
    report = audit(tree, oracle=lambda _: right)
    # Scored: 2 right, -2 wrong, 1 wrong, -1 right. Pairs in order: (2, -2), (2, 1), (-1, -2); not (-1, 1).
    assert report.oracle == {
        "auc": 0.75,
        "auc/depth/1": 1.0,
        "auc/depth/2": 0.0,
        "auc/visits/2-3": 0.0,
        "auc/visits/4-7": 1.0,
    }


def test_an_oracle_without_wrong_steps_says_nothing():
    assert audit(flat_tree(CORRECT, WRONG), oracle=lambda tree: np.ones(tree.num_nodes, dtype=bool)).oracle == {}


@settings(max_examples=50)
@given(st.lists(trees(), min_size=1, max_size=5))
def test_counts_add_up_and_the_verdict_agrees_with_the_advice(searched):
    report = audit(*searched)
    kinds = report.num_informative + report.num_all_correct + report.num_all_wrong
    assert kinds == report.num_problems == len(searched)
    assert sum(report.rollouts.values()) == sum(tree.num_rollouts for tree in searched)
    assert sum(report.histogram.counts) == report.num_steps == sum(tree.num_nodes - 1 for tree in searched)
    assert report.negative_mass <= 0 <= report.positive_mass
    assert report.passed is (report.advice == "")
    assert report.passed <= (report.num_informative > 0)
