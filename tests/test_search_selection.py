import numpy as np
import pytest

from pipeline_lib.search import select, ucb1_scores


def int32(*values):
    return np.array(values, dtype=np.int32)


def test_without_exploration_the_scores_are_the_values():
    scores = ucb1_scores(np.array([0.7, 0.4]), int32(10, 20), 30, c_uct=0.0)
    assert scores.tolist() == [0.7, 0.4]


def test_scores_equal_numbers_worked_by_hand():
    # ln 3 = 1.0986; sqrt(1.0986 / 1) = 1.0481; sqrt(1.0986 / 2) = 0.7412
    scores = ucb1_scores(np.array([1.0, 0.5]), int32(1, 2), 3, c_uct=1.0)
    assert scores == pytest.approx([2.0481, 1.2412], abs=1e-4)
    # ln 100 = 4.6052; sqrt(4.6052 / 25) = 0.4292, times 2
    assert ucb1_scores(np.array([0.25]), int32(25), 100, c_uct=2.0) == pytest.approx([1.1084], abs=1e-4)


def test_an_unvisited_child_scores_infinity_without_a_warning():
    scores = ucb1_scores(np.array([0.0, 1.0]), int32(0, 5), 5, c_uct=0.0)
    assert scores.tolist() == [np.inf, 1.0]


def test_a_node_visited_once_gives_no_bonus():
    assert ucb1_scores(np.array([1.0]), int32(1), 1, c_uct=3.0).tolist() == [1.0]


def test_more_exploration_turns_to_the_rare_child():
    value_sums, visits = np.array([6.0, 0.0]), int32(10, 2)
    assert select(value_sums, visits, 12, c_uct=0.5) == 0  # 0.6 + 0.249 against 0 + 0.557
    assert select(value_sums, visits, 12, c_uct=2.0) == 1  # 0.6 + 0.997 against 0 + 2.229


def test_ties_go_to_the_lowest_index():
    assert select(np.array([1.0, 2.0, 1.0, 2.0]), int32(4, 4, 4, 4), 16, c_uct=1.0) == 1


def test_simulations_in_flight_count_as_failures():
    assert select(np.array([2.0, 1.0]), int32(2, 2), 4, c_uct=0.1) == 0
    assert select(np.array([2.0, 1.0]), int32(2 + 3, 2), 7, c_uct=0.1) == 1  # 2/5 against 1/2
