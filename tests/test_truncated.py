"""What a limit cut off: one rule for search and evaluation, and a limit that is known by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cutoff_fixtures import RIGHT_AND_ON, RULES, FullContext, audit, evaluated, searched_one
from search_fixtures import LateGrader, UnorderedPolicy, as_dicts, babble, make_problems, search

from pipeline_lib.config import (
    ConfigError,
    Cutoff,
    EvaluationConfig,
)
from pipeline_lib.evaluation import evaluate
from pipeline_lib.search import read_trees_parquet, write_trees_parquet
from pipeline_lib.training.batches.packing import pack_example
from pipeline_lib.types import ROOT, EvalReport, Outcome, TrainingExample

# --- Which limit it was ---

CUTS = [
    ({"max_step_tokens": 3}, "step", "search.max_step_tokens"),
    ({"max_depth": 2}, "depth", "search.max_depth"),
    ({"max_new_tokens": 6}, "tokens", "search.max_new_tokens"),
    ({"room": 6}, "context", "policy.max_context_tokens"),
]


@pytest.mark.parametrize(("limit", "name", "dial"), CUTS)
def test_the_limit_is_kept_with_the_tree_and_the_advice_names_its_setting(
    limit: dict[str, int], name: str, dial: str, tmp_path: Path
) -> None:
    write_trees_parquet([searched_one("ab\ncdef\n#1", **limit)], tmp_path / "trees.parquet")
    [tree] = read_trees_parquet(tmp_path / "trees.parquet")
    assert [Cutoff(number).name.lower() for number in tree.cutoffs if number] == [name]
    report = audit([tree])
    assert report.cutoffs == {name: 1}
    assert (report.truncated_share, report.passed) == (1, False)
    assert report.advice == f"raise {dial}, or take a model that ends its answers"


def test_the_first_limit_that_is_passed_is_the_one_that_is_kept() -> None:
    both = searched_one("ab\ncdef\n#1", max_step_tokens=3, max_depth=2)
    assert [Cutoff(number) for number in both.cutoffs if number] == [Cutoff.STEP]
    assert [
        Cutoff(number) for number in searched_one("ab\nc\ndefgh", max_step_tokens=3, max_depth=2).cutoffs if number
    ] == [Cutoff.DEPTH]


def test_the_advice_names_the_limit_that_cut_off_most() -> None:
    deep = [searched_one("ab\ncdef\n#1", max_depth=1) for _ in range(2)]
    long = searched_one("ab\ncdef\n#1", max_new_tokens=6)
    assert audit([*deep, long]).cutoffs == {"depth": 2, "tokens": 1}
    assert audit([*deep, long]).advice.startswith("raise search.max_depth,")


# --- One rule, in search and in evaluation ---


@pytest.mark.parametrize(
    ("truncated", "visits", "reward", "counted", "num_correct"),
    [("wrong", 1, 0, 2, 1), ("grade", 1, 1, 2, 2), ("ignore", 0, 0, 1, 1)],
)
def test_search_and_evaluation_treat_what_was_cut_off_alike(
    truncated: str, visits: int, reward: int, counted: int, num_correct: int
) -> None:
    tree = searched_one(RIGHT_AND_ON, truncated, max_new_tokens=6)
    assert (tree.num_rollouts, tree.value_sums[ROOT], tree.num_simulations) == (visits, reward, 1)
    assert audit([tree]).cutoffs == {"tokens": 1}
    report, predictions = evaluated(truncated, RIGHT_AND_ON, "#1")
    assert (report.num_problems, report.num_correct, report.num_truncated) == (2, num_correct, 1)
    assert (report.num_ignored, report.cutoffs) == (2 - counted, {"tokens": 1})
    assert report.accuracy == num_correct / counted
    assert (report.num_wrong, report.num_unparsed) == (counted - num_correct, 0)
    assert [p.cutoff for p in predictions] == ["tokens", None]


@pytest.mark.parametrize("truncated", RULES)
def test_a_whole_answer_is_the_same_under_every_rule(truncated: str) -> None:
    problems = make_problems(6)
    limits = {"max_depth": 99, "max_new_tokens": 200, "max_step_tokens": 200}
    assert as_dicts(search(babble, problems, truncated=truncated, **limits)[0]) == as_dicts(
        search(babble, problems, **limits)[0]
    )
    assert evaluated(truncated, "#1", "#2", "ab") == evaluated("wrong", "#1", "#2", "ab")


def test_a_context_that_is_full_is_named_in_evaluations_too() -> None:
    policy = FullContext(RIGHT_AND_ON, room=4)
    report, _ = evaluate(
        make_problems(2),
        policy,
        LateGrader(),
        split="test",
        config=EvaluationConfig(),
        seed=0,
        extract=lambda text: None,
    )
    assert report.cutoffs == {"context": 2}


def test_samples_that_are_ignored_are_left_out_of_every_figure() -> None:
    """Of the first problem's samples two are cut off; of the second's all."""
    samples = {"q0": iter(["#1", RIGHT_AND_ON, RIGHT_AND_ON, "#1", "#2"]), "q1": iter(["#1", *[RIGHT_AND_ON] * 4])}

    def run(truncated: str) -> EvalReport:
        given = {name: list(texts) for name, texts in plans.items()}
        policy = UnorderedPolicy(lambda prompt, seed: given[prompt.partition("?")[0]].pop(0), capacity=1)
        config = EvaluationConfig(max_new_tokens=6, num_samples=4, pass_k=(1, 2, 4))
        return evaluate(
            make_problems(2), policy, LateGrader(), split="test", config=config, seed=0,
            extract=lambda text: text.rpartition("#")[2].strip() or None, truncated=truncated,
        )[0]  # fmt: skip

    plans = {name: list(texts) for name, texts in samples.items()}
    assert run("ignore").sampled == pytest.approx({"mean": 0.5, "avg@4": 0.5, "maj@4": 1, "pass@1": 0.5, "pass@2": 1})
    assert run("wrong").sampled["avg@4"] == pytest.approx((1 / 4 + 0) / 2)
    assert run("wrong").sampled["maj@4"] == 0.5  # what was not given has no vote
    assert run("grade").sampled["avg@4"] == pytest.approx((3 / 4 + 1) / 2)


def test_nothing_left_to_count_is_refused_with_the_setting_to_raise() -> None:
    with pytest.raises(
        ConfigError, match=r"^letters test: all 2 answers were cut off, and truncated=ignore leaves none to "
    ):
        evaluated("ignore", RIGHT_AND_ON, RIGHT_AND_ON)
    with pytest.raises(ConfigError, match=r"raise evaluation\.max_new_tokens$"):
        evaluated("ignore", RIGHT_AND_ON)


# --- What is ignored in a search ---


def test_an_ignored_rollout_is_spent_and_leaves_no_trace_but_its_number() -> None:
    problems = make_problems(8)
    limits = {"num_simulations": 24, "max_depth": 3}
    ignoring, stats, _ = search(babble, problems, truncated="ignore", **limits)
    for tree in ignoring.values():
        assert tree.num_simulations == 24
        assert not (tree.outcomes == Outcome.TRUNCATED).any()
        assert tree.visits[ROOT] == tree.visits[tree.parents == ROOT].sum()
    assert sum(sum(tree.ignored) for tree in ignoring.values()) > 0
    assert stats.num_rollouts == sum(tree.num_rollouts for tree in ignoring.values()) < 8 * 24
    for capacity, arrival in ((1, 1), (64, 2)):  # the order in which rollouts end changes nothing
        again = search(babble, problems, truncated="ignore", capacity=capacity, arrival=arrival, **limits)[0]
        assert as_dicts(again) == as_dicts(ignoring)


def test_a_search_of_which_all_is_ignored_ends() -> None:
    trees, stats, policy = search(lambda prefix, seed: "ab\n" * 9, make_problems(2), truncated="ignore", max_depth=2)
    assert [(tree.num_nodes, tree.ignored) for tree in trees.values()] == [(1, (0, 0, 16, 0, 0))] * 2
    assert (stats.num_rollouts, len(policy.requests)) == (0, 32)
    report = audit(list(trees.values()))
    assert (report.truncated_share, report.cutoffs, report.passed) == (1, {"depth": 32}, False)
    assert report.advice.startswith("raise search.max_depth,")


@pytest.mark.parametrize("truncated", RULES)
def test_a_continued_search_equals_an_uninterrupted_one_under_every_rule(truncated: str) -> None:
    problems = make_problems(6)
    limits = {"parallel_simulations": 1, "max_depth": 3}
    half = search(babble, problems, truncated=truncated, num_simulations=8, **limits)[0]
    whole = search(babble, problems, truncated=truncated, num_simulations=16, **limits)[0]
    continued = search(babble, problems, truncated=truncated, num_simulations=16, resume=half, **limits)[0]
    assert as_dicts(continued) == as_dicts(whole)


# --- What is graded in a search ---


def test_a_cut_answer_and_an_ended_one_of_the_same_text_stay_apart_and_only_one_teaches_the_end() -> None:
    answers = iter(["#1\n", "#1\nab"])
    trees, _, _ = search(
        lambda prefix, seed: next(answers), make_problems(1), truncated="grade", num_simulations=2, max_depth=1,
        parallel_simulations=1,
    )  # fmt: skip
    tree = trees["letters/train/00000"]
    assert list(zip(tree.outcomes.tolist(), tree.cutoffs.tolist(), strict=True))[1:] == [
        (Outcome.CORRECT, Cutoff.NONE),
        (Outcome.CORRECT, Cutoff.DEPTH),
    ]
    packed = pack_example(TrainingExample(tree, np.array([0.0, 1.0, 1.0])), eos_token_id=7)
    assert (packed.targets == 7).sum() == 1
    report = audit([tree])
    assert (report.rollouts["correct"], report.truncated_share, report.cutoffs) == (2, 0, {"depth": 1})


def test_graded_rollouts_without_an_answer_are_laid_to_the_limit_that_cut_them_off() -> None:
    report = audit([searched_one("ab\ncd\n#1", "grade", max_depth=2)])
    assert (report.rollouts["unparsed"], report.truncated_share) == (1, 0)
    assert report.advice.startswith("raise search.max_depth,")
