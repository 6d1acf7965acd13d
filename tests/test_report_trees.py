from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from tree_fixtures import make_tree, trees

from pipeline_lib.report.answers.flips import flip_kind
from pipeline_lib.report.charts import nice_ticks, value_axis
from pipeline_lib.report.figures import SMOOTHED_ABOVE, smooth
from pipeline_lib.report.page.render import tree_view
from pipeline_lib.report.page.tree_pictures import MAX_NODES, cells_of, depth_of, show_tree
from pipeline_lib.report.tree_choice import most_informative_trees, one_tree_of_each_kind
from pipeline_lib.search import read_roots, read_trees_parquet, write_trees_parquet
from pipeline_lib.tracking.tree_traces import trace_tree
from pipeline_lib.types import NO_PARENT, Outcome, Problem, SearchTree

PROBLEM = Problem(problem_id="d/train/0", question="?", answer="1", dataset="d")


def test_trees_are_chosen_at_the_ends_and_in_the_middle() -> None:
    counts = {"a": 0.0, "b": 1.0, "c": 4.0, "d": 7.0, "e": 8.0, "f": 4.0, "g": 0.0, "h": 4.0}
    sizes = {"c": 6, "f": 9, "h": 9}
    roots = [(name, 8, right, sizes.get(name, 5)) for name, right in counts.items()]
    chosen = one_tree_of_each_kind(roots)
    assert chosen == {"evenly split": "f", "rarely right": "b", "mostly right": "d", "never right": "a"}
    assert one_tree_of_each_kind(roots[::-1]) == chosen
    assert one_tree_of_each_kind([("e", 8, 8.0, 3)]) == {}
    assert one_tree_of_each_kind([("c", 8, 4.0, 3), ("a", 0, 0.0, 1)]) == {"evenly split": "c"}


def test_trees_that_are_half_right_come_first_and_those_without_signal_last() -> None:
    roots = [("0", 4, 4.0, 5), ("1", 4, 1.0, 5), ("3", 2, 1.0, 3), ("2", 4, 2.0, 5), ("4", 2, 1.0, 3), ("5", 0, 0.0, 9)]
    assert most_informative_trees(roots, 9) == ["2", "3", "4", "1", "5", "0"]
    assert most_informative_trees(roots, 2) == ["2", "3"]
    assert most_informative_trees([], 2) == []


def test_cells_lie_beside_their_parents_with_their_visits_as_height() -> None:
    tree = make_tree((NO_PARENT, 4, 2.0), (0, 1, 0.0, Outcome.WRONG), (0, 3, 2.0), (2, 2, 2.0, Outcome.CORRECT))
    first, second, third = cells_of(show_tree(tree, None, PROBLEM, iteration=1, kind="k"))
    assert (first.left, first.top, first.width, first.height) == (0, 75, 50, 25)
    assert (second.left, second.top, second.width, second.height) == (0, 0, 50, 75)
    assert (third.left, third.top, third.height, third.mark) == (50, 0, 50, "✓")
    assert (first.tone, first.strength, second.tone, round(second.strength)) == ("wrong", 100, "right", 33)


@pytest.mark.parametrize(
    ("rewards", "num_rollouts", "words"),
    [
        (3.0, 4, "3 of 4 rollouts right"),
        (133.0, 399, "133 of 399 rollouts right"),
        (2.6, 4, "mean reward 0.65 of 4 rollouts"),
    ],
)
def test_rewards_between_0_and_1_are_not_counted_as_right_ones(rewards: float, num_rollouts: int, words: str) -> None:
    tree = make_tree((NO_PARENT, num_rollouts, rewards), (0, num_rollouts, rewards, Outcome.CORRECT))
    assert tree_view(show_tree(tree, None, PROBLEM, iteration=1, kind="k")).rewards == words
    assert trace_tree(tree, PROBLEM).verdict == words


@given(trees())
def test_cells_never_overlap_and_stay_within_their_parent(tree: SearchTree) -> None:
    shown = show_tree(tree, tree.value_sums, PROBLEM, iteration=1, kind="k")
    cells = {cell.node: cell for cell in cells_of(shown)}
    for cell in cells.values():
        assert cell.left + cell.width <= 100.01
        assert cell.top + cell.height <= 100.01
        parent = cells.get(cell.parent)
        if parent is not None:
            assert parent.top - 0.01 <= cell.top
            assert cell.top + cell.height <= parent.top + parent.height + 0.01
    columns = [
        sorted((c.top, c.top + c.height) for c in cells.values() if c.left == left)
        for left in {c.left for c in cells.values()}
    ]
    for column in columns:
        assert all(later[0] >= earlier[1] - 0.01 for earlier, later in pairwise(column))


def test_a_large_tree_is_cut_to_its_most_visited_steps() -> None:
    rows = [(NO_PARENT, 900, 300.0), (0, 500, 300.0), *((1, 1, 0.0) for _ in range(400)), (0, 400, 0.0)]
    tree = make_tree(*rows)
    shown = show_tree(tree, np.zeros(tree.num_nodes), PROBLEM, iteration=1, kind="k")
    assert len(shown.parents) == MAX_NODES
    assert shown.num_nodes == tree.num_nodes
    assert {500, 400} <= set(shown.visits)
    assert all(parent < node for node, parent in enumerate(shown.parents))
    assert depth_of(shown) == 2


def test_roots_and_chosen_trees_are_read_without_the_rest(tmp_path: Path) -> None:
    made = [make_tree((NO_PARENT, 4, i), (0, 4, i), problem_id=f"p{i}") for i in (2.0, 0.0, 1.0)]
    write_trees_parquet(made, tmp_path / "trees.parquet")
    assert read_roots(tmp_path / "trees.parquet") == [("p0.0", 4, 0.0, 2), ("p1.0", 4, 1.0, 2), ("p2.0", 4, 2.0, 2)]
    [tree] = read_trees_parquet(tmp_path / "trees.parquet", {"p1.0"})
    assert (tree.problem_id, tree.steps) == ("p1.0", ("", "step 1\n"))


@pytest.mark.parametrize(
    ("right", "kind"),
    [
        ((0, 1), "wrong, then right"),
        ((0, 1, 0, 1), "wrong, then right"),
        ((1, 1, 0), "right, then wrong"),
        ((0, 1, 0), "wrong, right, wrong again"),
        ((1, 0, 1), "right, wrong, right again"),
        ((1, 1), "always right"),
        ((0,), "always wrong"),
    ],
)
def test_every_problem_has_one_flip_kind(right: tuple[int, ...], kind: str) -> None:
    assert flip_kind([bool(value) for value in right]) == kind


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.3, 4.2, [0, 1, 2, 3, 4, 5]),
        (44, 81, [40, 50, 60, 70, 80, 90]),
        (0, 0.023, [0, 0.005, 0.01, 0.015, 0.02, 0.025]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose_the_data(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)
    axis = value_axis("", low, high)
    assert axis(ticks[0]) > axis(ticks[-1])  # upwards on a screen


def test_long_curves_are_drawn_as_means() -> None:
    points = [(i, float(i % 2)) for i in range(1, 601)]
    drawn = smooth(points)
    assert len(drawn) == SMOOTHED_ABOVE
    assert drawn[-1] == (600, 0.5)
    assert smooth(points[:10]) == points[:10]
