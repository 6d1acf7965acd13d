"""Dials that decide where a search spends its tokens: the frontier, stopping early, what becomes of the savings."""

import math

import numpy as np
import pytest
from search_fixtures import as_dicts, babble, make_problems, search
from tree_fixtures import flat_tree

from pipeline_lib.config import SearchConfig
from pipeline_lib.search import Step, TreeBuilder
from pipeline_lib.search.selection import frontier_scores
from pipeline_lib.search.simulation import extra_simulations
from pipeline_lib.types import ROOT, Outcome


def same_everywhere(**config):
    """The trees of a search, which capacity, order of problems and arrival do not change."""
    problems = make_problems(12)
    trees, _, _ = search(babble, problems, capacity=1, **config)
    for capacity, arrival in ((7, 1), (64, 2)):
        order = np.random.default_rng(arrival).permutation(len(problems))
        others, _, _ = search(babble, [problems[i] for i in order], capacity=capacity, arrival=arrival, **config)
        assert as_dicts(others) == as_dicts(trees)
    return trees


# --- Frontier ---


def test_frontier_scores_equal_numbers_worked_by_hand():
    scores = frontier_scores(np.array([1.0, 2.0]), np.array([2, 2]), np.array([1, 1]))
    entropy = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)
    assert scores == pytest.approx([math.tanh(0.5) + 1 + 0.1, math.tanh(0.75) + entropy + 0.1])
    deeper = frontier_scores(np.array([1.0, 1.0]), np.array([2, 2]), np.array([1, 4]))
    assert deeper[1] - deeper[0] == pytest.approx(0.1 * (1 - 0.5))


def grown_tree(selection):
    """Six rollouts: of two below "a" one is right, of four below "b" all are."""
    config = SearchConfig(num_candidates=6, selection=selection)
    tree = TreeBuilder("p", "policy", np.array([1]), seed=0, config=config)
    for first, answer in (("a\n", "#1"), ("a\n", "#2"), *[("b\n", "#1")] * 4):
        assert tree.select() == ROOT
        texts = (first, "so\n", answer)
        steps = [Step(text, np.array([ord(letter) for letter in text], dtype=np.int32)) for text in texts]
        is_right = answer == "#1"
        tree.insert(ROOT, steps, Outcome.CORRECT if is_right else Outcome.WRONG, float(is_right))
    return tree


def test_the_frontier_goes_on_in_the_undecided_branch_where_ucb_takes_the_right_one():
    # q below "a" is 2/4, below "b" 5/6, at the root 6/8: 1.562, 1.432 and, for the first steps, 1.517
    frontier, ucb = (grown_tree(selection) for selection in ("frontier", "ucb"))
    assert frontier.prefix_text(frontier.select()) == "a\nso\n"
    assert ucb.prefix_text(ucb.select()) == "b\n"


def test_a_frontier_without_open_nodes_is_the_root():
    trees, _, policy = search(lambda prefix, seed: f"#{seed % 3}", make_problems(1), selection="frontier")
    assert trees["letters/train/00000"].num_rollouts == 16
    assert {len(request.token_ids) for request in policy.requests} == {len("q0?\n")}


def test_the_frontier_gives_the_same_trees_everywhere():
    trees = same_everywhere(selection="frontier", num_candidates=2)
    assert as_dicts(trees) != as_dicts(search(babble, make_problems(12), num_candidates=2)[0])
    assert all(tree.num_rollouts == 16 for tree in trees.values())


# --- Stopping a tree whose first rollouts agree ---


@pytest.mark.parametrize("first", [2, 4])
def test_trees_whose_first_rollouts_agree_stop_there_and_others_get_all(first):
    trees = same_everywhere(stop_after_equal=first)
    unlimited, _, _ = search(babble, make_problems(12))
    short, _, _ = search(babble, make_problems(12), num_simulations=first)
    stopped = {name for name, tree in trees.items() if tree.num_rollouts == first}
    assert {name for name, tree in short.items() if not tree.is_informative} == stopped
    assert 0 < len(stopped) < 12
    assert as_dicts({n: trees[n] for n in stopped}) == as_dicts({n: short[n] for n in stopped})
    assert {trees[name].num_rollouts for name in trees.keys() - stopped} == {16}
    assert sum(t.tokens_generated for t in trees.values()) < sum(t.tokens_generated for t in unlimited.values())


def test_ignored_rollouts_are_none_of_the_first_ones():
    def script(prefix, seed):
        return "ab\n" * 40 if seed % 2 else "#1"

    trees, _, _ = search(script, make_problems(6), truncated="ignore", stop_after_equal=3, num_simulations=32)
    assert [tree.num_rollouts for tree in trees.values()] == [3] * 6
    assert sum(sum(tree.ignored) for tree in trees.values()) > 0


def test_a_search_that_stopped_early_is_continued_like_any_other():
    problems = make_problems(8)
    stopped, _, _ = search(babble, problems, stop_after_equal=2, parallel_simulations=1)
    undecided = {name: tree for name, tree in stopped.items() if tree.is_informative}
    rest = [problem for problem in problems if problem.problem_id in undecided]
    more, _, _ = search(babble, rest, num_simulations=20, parallel_simulations=1, resume=undecided)
    whole, _, _ = search(babble, rest, num_simulations=20, stop_after_equal=2, parallel_simulations=1)
    assert as_dicts(more) == as_dicts(whole)


def test_what_stopped_trees_save_is_shared_out_among_the_undecided():
    config = SearchConfig(num_simulations=16, stop_after_equal=4)
    right, wrong = Outcome.CORRECT, Outcome.WRONG
    stopped = [flat_tree(*[outcome] * 4) for outcome in (right, wrong)]
    undecided = [flat_tree(*[right, wrong] * 8) for _ in range(3)]
    assert extra_simulations([*stopped, *undecided], config) == 8
    assert extra_simulations(stopped, config) == extra_simulations(undecided, config) == 0
