from dataclasses import replace

import numpy as np
import pytest
from training_fixtures import group_scores, make_tree, random_tree

from pipeline_lib.config import TrainConfig
from pipeline_lib.training.batches.examples import (
    MAX_EXPONENTIAL,
    build_examples,
    correct_path_weights,
    count_examples,
    exponential_weights,
    preference_pairs,
    relative_correctness_weights,
    soft_clipped,
)
from pipeline_lib.types import Outcome

# 0 root; 1 and 2 its children; 3 right and 4 wrong below 1; 5 right below 2
TREE = make_tree(
    [-1, 0, 0, 1, 1, 2],
    [[], [4], [5], [6], [7], [8]],
    outcomes={3: Outcome.CORRECT, 4: Outcome.WRONG, 5: Outcome.CORRECT},
    visits=[4, 3, 1, 1, 2, 1],
    value_sums=[2, 1, 1, 1, 0, 1],
)
SCORES = np.array([0, -2.0, 2.0, 1.0, -1.0, 0])
ALL_WRONG = make_tree([-1, 0], [[], [4]], outcomes={1: Outcome.WRONG})


def weights_of(*scores, negative_clip):
    weights = relative_correctness_weights([np.array(s, dtype=float) for s in scores], negative_clip=negative_clip)
    return [weight.tolist() for weight in weights]


def test_scores_are_clipped_first_and_then_of_mean_magnitude_1():
    # mean |score| is 2, so -3 becomes -1.2; what is left, 2, 1 and 1.2, has mean magnitude 1.4
    first, second = weights_of([2, -1, 0], [-3], negative_clip=0.6)
    np.testing.assert_allclose(first, [2 / 1.4, -1 / 1.4, 0])
    np.testing.assert_allclose(second, [-1.2 / 1.4])


def test_without_a_clip_a_weight_is_its_score_over_the_mean_magnitude():
    assert weights_of([2, -1, 0], [-3], negative_clip=None) == [[1, -0.5, 0], [-1.5]]


def test_clip_zero_keeps_positives_only():
    assert weights_of([2, -1, 0, 6], negative_clip=0) == [[0.5, 0, 0, 1.5]]
    assert weights_of([-2, 0], negative_clip=0) == [[0, 0]]


@pytest.mark.parametrize("clip", [0, 0.1, 0.5, 3, None])
def test_no_clip_moves_the_share_of_the_kl(clip):
    trees = [random_tree(seed) for seed in range(5)]
    examples = build_examples(trees, [group_scores(tree) for tree in trees], TrainConfig(negative_clip=clip))
    magnitudes = np.abs(np.concatenate([example.weights for example in examples]))
    assert magnitudes[magnitudes > 0].mean() == pytest.approx(1)


def test_weights_do_not_depend_on_the_scale_of_the_scores():
    config = TrainConfig()
    (one,), (ten,) = (build_examples([TREE], [scale * SCORES], config) for scale in (1, 10))
    np.testing.assert_allclose(one.weights, ten.weights)


def test_a_soft_clip_bounds_scores_and_leaves_small_ones_nearly_as_they_are():
    (clipped,) = soft_clipped([np.array([3.0, -1.0, 0.0])], 1)
    np.testing.assert_allclose(clipped, [2 * np.tanh(1.5), -2 * np.tanh(0.5), 0])
    (wide,) = soft_clipped([np.array([3.0, -1.0, 0.0])], 1000)
    np.testing.assert_allclose(wide, [3, -1, 0], atol=1e-5)


def test_exponential_weights_are_positive_where_scored_and_bounded():
    first, second = exponential_weights([np.array([3.0, -1.0, 0.0]), np.zeros(1)], 1)
    np.testing.assert_allclose(first, [np.exp(1.5), np.exp(-0.5), 0])
    assert second.tolist() == [0]
    (cold,) = exponential_weights([np.array([3.0, -1.0])], 0.1)
    np.testing.assert_allclose(cold, [MAX_EXPONENTIAL, np.exp(-5)])


def test_every_weighting_takes_another_thing_of_the_same_scores():
    def weights(**changes):
        (example,) = build_examples([TREE], [SCORES], TrainConfig(negative_clip=None, **changes))
        return example.weights

    np.testing.assert_allclose(weights(), SCORES / 1.5)
    np.testing.assert_allclose(weights(weighting="sign"), np.sign(SCORES))
    raised = np.where(SCORES != 0, np.exp(SCORES / 1.5), 0)
    np.testing.assert_allclose(weights(weighting="exp"), raised / raised[raised > 0].mean())
    softened = np.tanh(SCORES / 1.5)
    np.testing.assert_allclose(weights(soft_clip=1), softened / np.abs(softened[softened != 0]).mean())
    hotter = weights(weighting="exp", weighting_temperature=10)
    assert np.ptp(hotter[SCORES != 0]) < np.ptp(weights(weighting="exp")[SCORES != 0])


def test_a_steps_value_is_a_weight_beside_its_score():
    all_right = replace(ALL_WRONG, value_sums=ALL_WRONG.visits.astype(float))
    trees, scores = [TREE, ALL_WRONG, all_right], [SCORES, np.zeros(2), np.zeros(2)]
    plain = build_examples(trees, scores, TrainConfig())
    weighted = build_examples(trees, scores, TrainConfig(value_weight=0.5))
    assert [example.tree for example in plain] == [TREE]
    assert [example.tree for example in weighted] == [TREE, all_right]
    np.testing.assert_allclose(weighted[0].weights[1:], plain[0].weights[1:] + 0.5 * TREE.values[1:])
    np.testing.assert_allclose(weighted[1].weights, [0, 0.5])


def test_rft_takes_each_distinct_step_of_right_paths_once():
    np.testing.assert_array_equal(correct_path_weights(TREE), [0, 1, 1, 1, 0, 1])
    examples = build_examples([TREE, ALL_WRONG], [SCORES, np.zeros(2)], TrainConfig(objective="rft"))
    assert [example.tree for example in examples] == [TREE]


def test_step_dpo_pairs_best_and_worst_child_of_each_branching_node():
    np.testing.assert_array_equal(preference_pairs(TREE, SCORES), [[2, 1], [3, 4]])
    seldom = SCORES * [1, 1, 0, 1, 1, 1]  # node 2 visited too seldom: no pair at the root
    np.testing.assert_array_equal(preference_pairs(TREE, seldom), [[3, 4]])


def test_trees_without_signal_are_left_out_and_counted():
    trees = [TREE, ALL_WRONG]
    examples = build_examples(trees, [SCORES, np.zeros(2)], TrainConfig())
    counts = count_examples(trees, examples)
    assert (counts["train/num_trees"], counts["train/num_trees_left_out"]) == (1, 1)
    assert counts["train/num_steps"] == 4
    # scores 2, 1 and the clipped -0.15 twice (their mean magnitude is 1.5), over their mean magnitude
    assert counts["train/positive_mass"] == pytest.approx(3 / (3.3 / 4))
    assert counts["train/negative_mass"] == pytest.approx(-0.3 / (3.3 / 4))


def test_nothing_informative_gives_no_examples():
    assert build_examples([ALL_WRONG], [np.zeros(2)], TrainConfig()) == []
    assert build_examples([], [], TrainConfig()) == []


@pytest.mark.parametrize("objective", ["relative-correctness", "rft", "step-dpo"])
def test_every_objective_finds_something_in_random_trees(objective):
    trees = [random_tree(seed) for seed in range(5)]
    examples = build_examples(trees, [group_scores(tree) for tree in trees], TrainConfig(objective=objective))
    assert examples
    for example in examples:
        values = example.tree.values
        assert all(values[better] > values[worse] for better, worse in example.pairs)


def test_scores_of_another_shape_are_refused_by_name():
    with pytest.raises(ValueError, match="tiny-word/train/00000: 6 nodes"):
        build_examples([TREE], [np.zeros(3)], TrainConfig())
    with pytest.raises(ValueError, match="not finite"):
        build_examples([TREE], [np.full(6, np.nan)], TrainConfig())
