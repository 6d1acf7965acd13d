"""Dials that decide where a search spends its tokens: frontier and entropy, stopping early, what is then saved."""

import math
from dataclasses import replace

import numpy as np
import pytest
from search_fixtures import UnorderedPolicy, as_dicts, babble, make_problems, search
from tree_fixtures import flat_tree

from pipeline_lib.config import ConfigError, PipelineConfig, SearchConfig
from pipeline_lib.search import Step, TreeBuilder, TreeWriter, read_trees, write_trees_parquet
from pipeline_lib.search.selection import entropy_scores, frontier_scores
from pipeline_lib.search.simulation import extra_simulations
from pipeline_lib.types import ROOT, Outcome
from tasks.search import search_problems


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


# --- Entropy ---


def test_entropy_scores_equal_numbers_worked_by_hand():
    assert entropy_scores([(0.2, 0.6), (0.5,), (0.1, 0.1, 1.3)]) == pytest.approx([0.4, 0.5, 0.5])


def insert(tree, *steps):
    """One wrong rollout, its steps by text and surprisal; returns the text that it continued."""
    node = tree.select()
    made = [Step(text, np.array([ord(letter) for letter in text], dtype=np.int32), bits) for text, bits in steps]
    tree.insert(node, made, Outcome.WRONG, 0.0)
    return tree.prefix_text(node)


def test_a_rollout_starts_before_the_least_certain_steps_once_the_root_has_its_own():
    tree = TreeBuilder("p", "any", np.array([1]), seed=0, config=SearchConfig(num_candidates=3, selection="entropy"))
    assert insert(tree, ("a\n", 9.0), ("b\n", 0.5), ("#1", 0.25)) == ""
    assert insert(tree, ("c\n", 0.0), ("d\n", 0.75), ("#1", 0.5)) == ""
    assert insert(tree, ("c\n", 4.0), ("#2", 0.0)) == ""  # the first c's surprisal stays
    assert tree.build().surprisals.tolist() == [-1, 9, 0.5, 0.25, 0, 0.75, 0.5, 0]
    # a: 0.5; b: 0.25; c: (0.75 + 0) / 2; d: 0.5. The root, before the step of 9, has had its own.
    assert insert(tree, ("e\n", 0.375), ("#1", 1.0)) == "a\n"  # as uncertain as d, and inserted before
    assert insert(tree, ("#2", 0.0)) == "a\ne\n"  # 1 before, then (1 + 0) / 2
    assert insert(tree, ("#2", 0.0)) == "c\nd\n"  # again as uncertain; a has its three rollouts
    assert tree.build().visits[[1, 4]].tolist() == [3, 3]
    assert insert(tree, ("#3", 0.0)) == "a\ne\n"  # c too, so e's 0.5, b's and d's 0.25 are left


def test_a_step_is_as_surprising_as_its_tokens_are_on_average():
    dials = {"selection": "entropy", "num_simulations": 1, "max_step_tokens": 5}
    trees, _, policy = search(lambda prefix, seed: "ab\ncdefgh\n#1", make_problems(1), **dials)
    [tree] = trees.values()
    surprise = -policy._answer(policy.requests[0]).logprobs
    assert tree.steps == ("", "ab\n", "cdefg")
    assert tree.surprisals == pytest.approx([-1, surprise[:3].mean(), surprise[3:8].mean()])


def test_where_no_token_is_sampled_or_nobody_asks_nothing_is_known():
    empty, _, _ = search(lambda prefix, seed: "", make_problems(1), selection="entropy")
    silent, _, policy = search(babble, make_problems(2))
    assert not any(request.params.logprobs for request in policy.requests)
    assert [len(tree.surprisals) for tree in (*empty.values(), *silent.values())] == [0, 0, 0]


def test_least_certain_steps_give_the_same_trees_everywhere():
    trees = same_everywhere(selection="entropy", num_candidates=2)
    others = [search(babble, make_problems(12), selection=name, num_candidates=2)[0] for name in ("ucb", "frontier")]
    paths = [[tree.steps for tree in each.values()] for each in (trees, *others)]
    assert paths[0] != paths[1] != paths[2] != paths[0]
    assert all(tree.num_rollouts == 16 for tree in trees.values())


def test_a_search_that_went_on_from_half_its_trees_is_the_whole_one():
    dials = {"selection": "entropy", "num_candidates": 2, "parallel_simulations": 1}
    half, _, _ = search(babble, make_problems(6), num_simulations=8, **dials)
    whole, _, _ = search(babble, make_problems(6), num_simulations=16, **dials)
    more, _, _ = search(babble, make_problems(6), num_simulations=16, resume=half, **dials)
    assert as_dicts(more) == as_dicts(whole)


def test_a_killed_search_for_least_certain_steps_resumes_to_the_same_bytes(tmp_path):
    problems, dials = make_problems(8), {"selection": "entropy", "num_candidates": 2}
    whole, _, _ = search(babble, problems, **dials)
    write_trees_parquet(whole.values(), tmp_path / "whole.parquet")
    with TreeWriter(tmp_path / "trees.jsonl") as writer:
        for problem in problems[:3]:
            writer.append(whole[problem.problem_id])
    path = tmp_path / "trees.jsonl"
    path.write_bytes(path.read_bytes()[:-7])  # killed while it wrote the third
    kept = {tree.problem_id: tree for tree in read_trees(path)}
    rest = [problem for problem in problems if problem.problem_id not in kept]
    again, _, _ = search(babble, rest, capacity=3, arrival=5, **dials)
    write_trees_parquet([*again.values(), *kept.values()], tmp_path / "again.parquet")
    assert (len(kept), len(again)) == (2, 6)
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_trees_that_know_nothing_of_their_tokens_are_gone_on_with_at_the_root():
    known, _, _ = search(babble, make_problems(1), num_simulations=8)
    more, _, policy = search(babble, make_problems(1), num_simulations=9, selection="entropy", resume=known)
    assert {len(request.token_ids) for request in policy.requests} == {len("q0?\n")}
    [tree] = more.values()
    assert set(tree.surprisals[: known[tree.problem_id].num_nodes].tolist()) == {-1}


def test_an_engine_that_gives_no_log_probabilities_is_refused():
    class SilentPolicy(UnorderedPolicy):
        def _answer(self, request):
            return replace(super()._answer(request), logprobs=None)

    with pytest.raises(ConfigError, match=r"search\.selection=entropy: the engine gives no log-probabilities"):
        search(babble, make_problems(1), policy=SilentPolicy(babble), selection="entropy")


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


# --- A temperature that rises ---


def test_the_temperature_rises_by_iteration_and_no_further_than_1():
    config = SearchConfig(temperature=0.6, temperature_rise=0.15)
    assert [config.in_iteration(index).temperature for index in (1, 2, 3, 4, 9)] == [0.6, 0.75, 0.9, 1.0, 1.0]
    assert SearchConfig(temperature=1.2, temperature_rise=0.15).in_iteration(3).temperature == 1.2


def test_each_iteration_is_searched_at_its_own_temperature(monkeypatch):
    searched = []
    monkeypatch.setattr("tasks.search._search_pass", lambda same: searched.append(same["config"].search) or ())
    config = PipelineConfig(search=SearchConfig(temperature=0.5, temperature_rise=0.25))
    for iteration in (1, 2):
        search_problems(config=config, problems=None, policy=None, iteration=iteration)
    # Nothing but the temperature is left of it: the keys are those of a search at that temperature throughout.
    assert searched == [SearchConfig(temperature=0.5), SearchConfig(temperature=0.75)]
