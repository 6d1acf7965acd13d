"""A verifier's number between 0 and 1 is what a search backs up; its grade is what counts as right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cutoff_fixtures import POLICY, REF
from hypothesis import given
from hypothesis import strategies as st
from search_fixtures import LateGrader, UnorderedPolicy, as_dicts, babble, make_problems

from deployments.presets import tiny
from pipeline_lib.config import SearchConfig
from pipeline_lib.grading import Grade, GradingPool
from pipeline_lib.grading.grader import Grader
from pipeline_lib.score import score_tree
from pipeline_lib.search import read_trees, read_trees_parquet, search_trees, write_trees_parquet
from pipeline_lib.search.rollout import Rollout
from pipeline_lib.search.tree_files import TreeWriter
from pipeline_lib.seeding import derive_generator
from pipeline_lib.types import ROOT, Outcome, SearchTree
from tasks.search import _spec

VERIFIER = """
def part(prediction, gold):
    return {"a": 0.25, "b": 0.75}[prediction.strip()[-1]], "by its last letter"

def alike(prediction, gold):
    return 0.6
"""
CONFIG = SearchConfig(num_simulations=24, num_candidates=3, max_depth=6)


@pytest.fixture
def verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_rewards.py").write_text(VERIFIER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "own_rewards"


def two_steps(prefix: str, seed: int) -> str:
    """So many lines that two are on every path, of two letters."""
    letters = derive_generator(seed).choice(list("ab"), size=2)
    return "\n".join(letters[prefix.partition("?\n")[2].count("\n") :])


def halves(prefix: str, seed: int) -> str:
    return babble(prefix, seed).removesuffix("!")


def searched(grader: Grader, config: SearchConfig = CONFIG, resume: dict[str, SearchTree] | None = None) -> SearchTree:
    trees: list[SearchTree] = []
    search_trees(
        make_problems(1), UnorderedPolicy(two_steps), grader, config, seed=3, on_tree=trees.append, resume=resume or {}
    )
    return trees[0]


def num_right(tree: SearchTree) -> int:
    return int(tree.visits[tree.outcomes == Outcome.CORRECT].sum())


def test_a_verifiers_number_is_backed_up_and_its_grade_is_the_outcome(verifier: str, tmp_path: Path) -> None:
    with GradingPool(1, grader=f"{verifier}:part") as pool:
        tree = searched(pool)
    paid = {int(Outcome.WRONG): 0.25, int(Outcome.CORRECT): 0.75}
    ended = np.flatnonzero(tree.outcomes != Outcome.OPEN)
    rewards = np.array([paid[int(tree.outcomes[node])] for node in ended])
    assert {tree.steps[node].strip() for node in ended[rewards == 0.25]} == {"a"}
    assert {tree.steps[node].strip() for node in ended[rewards == 0.75]} == {"b"}
    assert np.array_equal(tree.value_sums[ended], rewards * tree.visits[ended])
    assert tree.value_sums[ROOT] == tree.value_sums[ended].sum() == (rewards * tree.visits[ended]).sum()
    assert num_right(tree) == tree.visits[ended[rewards == 0.75]].sum()
    assert 0 < num_right(tree) < tree.num_rollouts == 24
    assert tree.is_informative
    assert np.any(score_tree(tree, tiny().score) > 0)

    write_trees_parquet([tree], tmp_path / "trees.parquet")
    with TreeWriter(tmp_path / "trees.jsonl") as writer:
        writer.append(tree)
    for read in (read_trees_parquet(tmp_path / "trees.parquet"), read_trees(tmp_path / "trees.jsonl")):
        assert as_dicts({"": read[0]}) == as_dicts({"": tree})


def test_a_search_that_goes_on_backs_up_the_same_numbers(verifier: str) -> None:
    with GradingPool(1, grader=f"{verifier}:part") as pool:
        half = searched(pool, CONFIG.model_copy(update={"num_simulations": 11}))
        whole, resumed = searched(pool), searched(pool, resume={half.problem_id: half})
    assert as_dicts({"": resumed}) == as_dicts({"": whole})


def test_rewards_that_are_all_alike_teach_nothing(verifier: str) -> None:
    with GradingPool(1, grader=f"{verifier}:alike") as pool:
        tree = searched(pool)
    assert num_right(tree) == tree.num_rollouts == 24
    assert tree.value_sums[ROOT] == pytest.approx(0.6 * 24)
    assert not tree.is_informative


@given(st.integers(0, 2**32 - 1))
def test_without_a_number_a_reward_is_whether_it_is_right(seed: int) -> None:
    trees: list[SearchTree] = []
    search_trees(make_problems(2), UnorderedPolicy(halves), LateGrader(), CONFIG, seed=seed, on_tree=trees.append)
    for tree in trees:
        assert tree.value_sums[ROOT] == num_right(tree)
        assert tree.is_informative == (0 < num_right(tree) < tree.num_rollouts)


def test_a_rollouts_reward_is_its_grade_unless_one_is_given() -> None:
    rollout = Rollout((), Outcome.OPEN, 0)
    rewards = {grade: rollout.with_grade(grade).reward for grade in Grade}
    assert rewards == {grade: float(grade is Grade.CORRECT) for grade in Grade}
    soft = rollout.with_grade(Grade.WRONG, 0.25)
    assert (soft.outcome, soft.reward) == (Outcome.WRONG, 0.25)


def test_only_searches_with_a_verifier_are_made_again() -> None:
    def spec(grader: str) -> dict[str, object]:
        config = tiny().model_copy(update={"grader": grader})
        return _spec(config=config, problems=REF, policy=POLICY, iteration=1, earlier=())

    assert "reward" not in spec("math")
    assert "reward" in spec("operator:eq")
