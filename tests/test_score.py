import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_fixtures import make_tree, trees

from pipeline_lib.config import ScoreConfig
from pipeline_lib.score import relative_correctness, score_tree
from pipeline_lib.score.formula import shrinkage, with_chain_credit

BASELINES, SCALINGS = ("others", "group"), ("linear", "sqrt", "none")
CONFIGS = [ScoreConfig(baseline=b, scaling=s) for b in BASELINES for s in SCALINGS]
ROOTED = [ScoreConfig(baseline="root", scaling=s, chain_credit=c) for s in SCALINGS for c in (False, True)]


def test_the_docstring_example():
    assert relative_correctness([3, 1], [3, 0]).tolist() == [3.0, -1.0]


@pytest.mark.parametrize(
    ("baseline", "scaling", "expected"),
    [
        # Q = 3/4, 0, 1. The others' visit-weighted means: 1/3, 4/5, 3/6.
        ("others", "none", [5 / 12, -4 / 5, 1 / 2]),
        ("others", "sqrt", [5 / 6, -(2**0.5) * 4 / 5, 1 / 2]),
        ("others", "linear", [5 / 3, -8 / 5, 1 / 2]),
        # The mean of all: 4/7.
        ("group", "none", [5 / 28, -4 / 7, 3 / 7]),
        ("group", "sqrt", [5 / 14, -(2**0.5) * 4 / 7, 3 / 7]),
        ("group", "linear", [5 / 7, -8 / 7, 3 / 7]),
    ],
)
def test_equation_1_worked_by_hand(baseline, scaling, expected):
    scores = relative_correctness([4, 2, 1], [3, 0, 1], baseline=baseline, scaling=scaling)
    assert scores.dtype == np.float64
    assert scores == pytest.approx(expected, abs=1e-12)


def test_the_baseline_weighs_siblings_by_visits_and_not_by_head():
    # Siblings with Q 1 (9 visits) and Q 0 (1 visit) have the mean 0.9, not 0.5.
    assert relative_correctness([1, 9, 1], [0, 9, 0])[0] == pytest.approx(-0.9)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_only_child_and_an_unvisited_one_score_zero_without_a_warning(baseline, scaling):
    assert relative_correctness([5], [2], baseline=baseline, scaling=scaling).tolist() == [0.0]
    assert relative_correctness([5, 0], [2, 0], baseline=baseline, scaling=scaling).tolist() == [0.0, 0.0]
    assert relative_correctness([], [], baseline=baseline, scaling=scaling).shape == (0,)


@pytest.mark.parametrize(
    ("visits", "value_sums", "options", "message"),
    [
        ([1, 2], [1], {}, "equal length"),
        ([[1]], [[1]], {}, "equal length"),
        ([1], [2], {}, r"\[0, visits\]"),
        ([1], [-1], {}, r"\[0, visits\]"),
        ([-1], [0], {}, r"\[0, visits\]"),
        ([1], [np.nan], {}, r"\[0, visits\]"),
        ([1], [1], {"baseline": "siblings"}, "'siblings': expected others or group"),
        ([1], [1], {"scaling": "cubic"}, "'cubic': expected linear, sqrt or none"),
    ],
)
def test_bad_input_is_refused_in_one_line(visits, value_sums, options, message):
    with pytest.raises(ValueError, match=message) as error:
        relative_correctness(visits, value_sums, **options)
    assert "\n" not in str(error.value)


def test_a_tree_is_scored_group_by_group():
    tree = make_tree((-1, 8, 5), (0, 5, 4), (1, 3, 3), (0, 3, 1), (1, 2, 1), (3, 3, 1))
    # Children 1 and 3 of the root: Q 4/5 and 1/3. Children 2 and 4 of node 1: Q 1 and 1/2. Node 5 is alone.
    expected = [0, 5 * (4 / 5 - 1 / 3), 3 * (1 - 1 / 2), 3 * (1 / 3 - 4 / 5), 2 * (1 / 2 - 1), 0]
    assert score_tree(tree, ScoreConfig()) == pytest.approx(expected)


def test_min_visits_silences_rare_steps_but_keeps_them_in_the_baseline():
    tree = make_tree((-1, 4, 3), (0, 3, 3), (0, 1, 0))
    assert score_tree(tree, ScoreConfig(min_visits=1)).tolist() == [0.0, 3.0, -1.0]
    assert score_tree(tree, ScoreConfig(min_visits=2)).tolist() == [0.0, 3.0, 0.0]
    assert score_tree(tree, ScoreConfig(min_visits=4)).tolist() == [0.0, 0.0, 0.0]


def test_a_lone_root_scores_zero():
    assert score_tree(make_tree((-1, 0, 0)), ScoreConfig()).tolist() == [0.0]


@given(trees())
def test_a_tree_scores_as_its_groups_do_one_at_a_time(tree):
    for config in CONFIGS:
        scores = score_tree(tree, config)
        for group in tree.sibling_groups().values():
            alone = relative_correctness(
                tree.visits[group], tree.value_sums[group], baseline=config.baseline, scaling=config.scaling
            )
            assert scores[group].tolist() == alone.tolist()
        assert scores[0] == 0


@given(trees())
def test_with_group_and_linear_every_sibling_group_sums_to_zero(tree):
    scores = score_tree(tree, ScoreConfig(baseline="group", scaling="linear"))
    for group in tree.sibling_groups().values():
        assert scores[group].sum() == pytest.approx(0, abs=1e-9)


@given(st.sampled_from([0.0, 1.0]).flatmap(lambda reward: trees(reward=reward)))
def test_all_right_and_all_wrong_trees_score_exactly_zero_everywhere(tree):
    for config in CONFIGS + ROOTED:
        assert not score_tree(tree, config).any()


@given(trees())
def test_both_baselines_agree_on_signs_and_scores_are_bounded_by_visits(tree):
    others, group = (score_tree(tree, ScoreConfig(baseline=baseline)) for baseline in BASELINES)
    assert (np.sign(others) == np.sign(group)).all()
    assert (np.abs(group) <= np.abs(others) + 1e-12).all()
    assert (np.abs(others) <= tree.visits + 1e-12).all()


@given(trees(), st.randoms(use_true_random=False))
def test_a_score_does_not_depend_on_the_order_of_siblings(tree, random):
    for group in tree.sibling_groups().values():
        order = random.sample(range(len(group)), len(group))
        scores = relative_correctness(tree.visits[group], tree.value_sums[group])
        shuffled = relative_correctness(tree.visits[group][order], tree.value_sums[group][order])
        assert shuffled.tolist() == scores[order].tolist()


# The root has 3 of 6 right; child 1 3 of 4, its only child 3 all of them; child 2 none of 2; below 3 stand 4 and 5.
CHAINED = make_tree((-1, 6, 3), (0, 4, 3), (0, 2, 0), (1, 4, 3), (3, 3, 3), (3, 1, 0))


def test_against_parent_and_root_worked_by_hand():
    expected = [0, 0.25 + 0.25, -0.5 - 0.5, 0 + 0.25, 0.25 + 0.5, -0.75 - 0.5]
    config = ScoreConfig(baseline="root", scaling="none")
    assert score_tree(CHAINED, config) == pytest.approx(expected)
    with_visits = config.model_copy(update={"scaling": "sqrt"})
    assert score_tree(CHAINED, with_visits) == pytest.approx(np.array(expected) * np.sqrt(CHAINED.visits))


def test_imagined_rollouts_shrink_what_few_visits_say():
    assert shrinkage(np.array([1.0, 4.0]), 1).tolist() == [0.5, 0.8]
    # Q = 1 of one visit against 1/3 of three: (1 + 1/3) / 2 - 1/3 is half of the difference
    tree = make_tree((-1, 4, 2), (0, 1, 1), (0, 3, 1))
    plain, shrunk = (score_tree(tree, ScoreConfig(prior_rollouts=k, scaling="none")) for k in (0, 1))
    assert plain[1] == pytest.approx(2 / 3)
    assert shrunk[1:] == pytest.approx(plain[1:] * [1 / 2, 3 / 4])


def test_a_step_without_siblings_takes_over_the_score_of_the_step_before():
    plain, credited = (score_tree(CHAINED, ScoreConfig(chain_credit=c)) for c in (False, True))
    assert (plain[3], credited[3]) == (0, plain[1])
    assert credited[[1, 2, 4, 5]].tolist() == plain[[1, 2, 4, 5]].tolist()
    tail = make_tree((-1, 2, 1), (0, 1, 1), (0, 1, 0), (1, 1, 1), (3, 1, 1))
    assert with_chain_credit(np.array([0, 2.0, -1, 0, 0]), tail).tolist() == [0, 2, -1, 2, 2]
    alone = make_tree((-1, 2, 1), (0, 2, 1), (1, 1, 1), (1, 1, 0))
    assert score_tree(alone, ScoreConfig(chain_credit=True))[1] == 0  # below the root there is nothing to take over
    assert not score_tree(CHAINED, ScoreConfig(chain_credit=True, min_visits=5)).any()


@given(trees())
def test_chain_credit_scores_the_ends_of_all_branches_that_are_scored(tree):
    plain, credited = (score_tree(tree, ScoreConfig(chain_credit=c)) for c in (False, True))
    assert np.count_nonzero(credited) >= np.count_nonzero(plain)
    groups = tree.sibling_groups()
    for parent, group in groups.items():
        expected = plain[group] if parent == 0 or len(group) > 1 else credited[[parent]]
        assert credited[group].tolist() == expected.tolist()
