"""Iterations that look back: draws at what earlier ones solved now and then, trainings at their scored trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from run_fixtures import SCRIPTED, of_content, run_in, small_config

from pipeline_lib.problems.draw import DrawnProblems, prefer_informative
from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.store import Store
from pipeline_lib.types import Problem, RunResult


def problem(index: int, level: int = 1) -> Problem:
    return Problem(f"own/train/{index}", f"q{index}", "1", "own", {"level": str(level)})


def drawn(*problems: Problem, note: str = "") -> DrawnProblems:
    return DrawnProblems(problems, note=note)


def test_up_to_half_are_asked_again_the_least_decided_first() -> None:
    asked = [problem(i) for i in range(5)]
    rates = dict(zip([p.problem_id for p in asked], (1.0, 0.25, 0.5, 0.0, 0.6), strict=True))
    fresh = drawn(*(problem(i) for i in range(10, 14)))
    chosen = prefer_informative(fresh, asked, rates)
    assert [p.question for p in chosen] == ["q2", "q4", "q10", "q11"]
    assert (chosen.num_reused, "2 of 4 problems are asked again" in chosen.note) == (2, True)


def test_fresh_problems_come_from_groups_that_were_undecided() -> None:
    asked = [problem(0, level=1), problem(1, level=2), problem(2, level=2)]
    rates = {"own/train/0": 1.0, "own/train/1": 0.5, "own/train/2": 0.0}  # level 2: 4 p (1 - p) is 0.5 on average
    fresh = drawn(problem(10, level=1), problem(11, level=2), problem(12, level=3), problem(13, level=2))
    chosen = prefer_informative(fresh, asked, rates)
    assert [p.question for p in chosen] == ["q1", "q11", "q13", "q12"]  # level 3 is unknown: 1/6, the mean over all


def test_where_nothing_was_undecided_the_draw_stays_and_none_stands_twice() -> None:
    asked = [problem(0), problem(1)]
    fresh = drawn(problem(10), problem(11), note="as before")
    decided = prefer_informative(fresh, asked, {"own/train/0": 1.0, "own/train/1": 0.0})
    assert [p.question for p in decided] == ["q10", "q11"]
    assert decided.note.startswith("as before; 0 of 2")
    again = prefer_informative(drawn(problem(0), problem(1)), asked, {"own/train/0": 0.5, "own/train/1": 0.5})
    assert sorted(p.question for p in again) == ["q0", "q1"]


def questions(home: Path, result: RunResult, iteration: int) -> list[str]:
    folder = Store(home / "store").open(result.records[iteration].refs["problems"])
    return [p.question for p in read_problems(folder / "problems.parquet")]


def in_a_flow(test: Callable[..., None]) -> Callable[..., None]:
    """Marks what runs the whole flow."""
    quiet = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's and Prefect's own
    return pytest.mark.slow(pytest.mark.usefixtures("prefect_api")(quiet(test)))


@in_a_flow
def test_an_iteration_asks_again_what_the_one_before_left_undecided(new_home: Callable[[], Path]) -> None:
    home = new_home()
    two = (*SCRIPTED, "num_iterations=2", "gate.patience=9")
    plain = run_in(home, small_config(*two))
    looking_back = run_in(home, small_config(*two, "problems.curriculum=informative"))
    assert looking_back.records[1].refs["search"] == plain.records[1].refs["search"]  # nothing to look back at yet
    first, second = (questions(home, looking_back, iteration) for iteration in (1, 2))
    assert len(set(second) & set(first)) == len(second) // 2
    assert not set(questions(home, plain, 2)) & set(first)
    before = of_content(home)
    run_in(home, small_config(*two, "problems.curriculum=informative"))
    assert of_content(home) == before


@in_a_flow
def test_a_training_takes_up_the_trees_of_the_iteration_before(new_home: Callable[[], Path]) -> None:
    home = new_home()
    two = (*SCRIPTED, "num_iterations=2", "gate.patience=9")
    plain = run_in(home, small_config(*two))
    replaying = run_in(home, small_config(*two, "train.replay_iterations=1"))
    first, second = ([record.train["num_trees"] for record in result.records[1:]] for result in (plain, replaying))
    assert second == [first[0], first[0] + first[1]]
    assert replaying.records[1].refs["train"] == plain.records[1].refs["train"]  # nothing to take up yet
    assert replaying.records[2].refs["train"] != plain.records[2].refs["train"]
