"""The grader's version in store keys: raised where a grade may have changed, kept where none has."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pipeline_lib.config import GradingConfig, PipelineConfig, apply_overrides
from pipeline_lib.grading import GRADING_VERSION, Grade, grade
from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.search.tree_files import read_trees_parquet
from pipeline_lib.types import Outcome
from tasks.runtime.graders import grading_spec, yardstick_spec

ARCHIVE = Path(__file__).parent / "golden" / "home-0.1.0.tar.xz"
FIRST = {  # what version 0.1.0 wrote
    "grader": "math",
    "conventions": dict.fromkeys(
        ("any_order", "percent", "ignore_units", "rounded", "mixed_numbers", "last_number"), None
    ),
    "version": 1,
}


def test_the_tiny_worlds_grades_are_kept_under_their_first_version() -> None:
    for dataset in ("tiny-word", "tiny-algebra", "tiny-word@2"):
        assert grading_spec(PipelineConfig(), dataset) == FIRST
    assert "grading_version" not in yardstick_spec(PipelineConfig(), "tiny-word")


@pytest.mark.parametrize("dataset", ["gsm8k", "math", "file"])
def test_all_others_are_graded_anew(dataset: str) -> None:
    assert grading_spec(PipelineConfig(), dataset) == {**FIRST, "version": GRADING_VERSION}
    assert yardstick_spec(PipelineConfig(), dataset)["grading_version"] == GRADING_VERSION


@pytest.mark.parametrize("name", [name for name in GradingConfig.model_fields if name not in FIRST["conventions"]])
def test_a_later_convention_is_in_the_keys_once_it_is_set(name: str) -> None:
    value = {"log_base": "e", "positive_letters": "true"}.get(name, "false")
    config = apply_overrides(PipelineConfig(), [f"grading.{name}={value}"])
    assert set(grading_spec(config, "tiny-word")["conventions"]) == {*FIRST["conventions"], name}
    assert name in yardstick_spec(config, "tiny-word")["conventions"]


@pytest.mark.slow
def test_the_rollouts_of_a_kept_home_are_graded_as_they_were(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    store = tmp_path / "coppice-0.1.0" / "store"
    problems = [p for file in store.glob("draw-problems/*/problems.parquet") for p in read_problems(file)]
    golds = {problem.problem_id: problem.answer for problem in problems}
    grades = {Outcome.CORRECT: Grade.CORRECT, Outcome.WRONG: Grade.WRONG, Outcome.UNPARSED: Grade.UNPARSED}
    graded = 0
    for file in store.glob("search-shard/*/trees.parquet"):
        for tree in read_trees_parquet(file):
            for node in range(tree.num_nodes):
                expected = grades.get(Outcome(int(tree.outcomes[node])))
                if expected is not None:
                    text = "".join(tree.steps[step] for step in tree.path(node))
                    assert grade(text, golds[tree.problem_id]) is expected, text
                    graded += 1
    assert graded >= 100
