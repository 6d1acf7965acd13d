from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments.command.study import narrowed, with_methods
from deployments.presets import preset
from deployments.studies import QUESTIONS, study_of
from flows.study import run_study
from pipeline_lib.config import ConfigError
from pipeline_lib.study.cell_result import CellResult, Measured, result_of
from pipeline_lib.study.comparison import choose_tries, estimate, paired_differences
from pipeline_lib.study.grid import Method, StudyConfig
from pipeline_lib.study.study_page import study_page
from pipeline_lib.study.study_tables import markdown_table, study_json, study_markdown

RESULTS = Path(__file__).resolve().parents[1] / "deployments" / "results"
METHODS = (Method(name="a"), Method(name="b", tries=((), ("train.learning_rate=1e-4",))))


def small_study(**changes: Any) -> StudyConfig:
    values: dict[str, Any] = {"families": ("tiny-word",), "seeds": (0, 1), "methods": METHODS, "reference": "a"}
    return StudyConfig(name="s", base=preset("tiny"), **(values | changes))


def run_of(method: str, seed: int, tests: list[float], validation: list[float], attempt: int = 0) -> CellResult:
    """A run whose policies have these accuracies on tiny-word, and the same less 0.1 on tiny-algebra."""
    policies = tuple(
        Measured(
            accuracy={"tiny-word": test, "tiny-algebra": test - 0.1}, validation=value, generated_tokens=100 * index
        )
        for index, (test, value) in enumerate(zip(tests, validation, strict=True))
    )
    return CellResult(
        method=method,
        family="tiny-word",
        seed=seed,
        attempt=attempt,
        overrides=(),
        policies=policies,
        champion=validation.index(max(validation)),
        stopped_because="num_iterations reached",
    )


def test_an_interval_over_seeds_is_students() -> None:
    value = estimate([0.70, 0.74, 0.78])
    assert value.mean == pytest.approx(0.74)
    assert value.half == pytest.approx(4.302653 * 0.04 / math.sqrt(3), rel=1e-5)
    assert value.interval == pytest.approx((0.74 - value.half, 0.74 + value.half))
    assert math.isnan(estimate([0.5]).half)
    with pytest.raises(ValueError, match="no value"):
        estimate([])


def test_differences_are_of_equal_seeds_and_of_the_policies_that_validation_chose() -> None:
    results = [
        run_of("a", 0, [0.5, 0.9, 0.6], [0.5, 0.6, 0.7]),
        run_of("a", 1, [0.5, 0.7], [0.5, 0.6]),
        run_of("b", 1, [0.5, 0.8], [0.5, 0.6]),
        run_of("b", 0, [0.5, 0.7], [0.5, 0.6]),
        run_of("b", 2, [0.5, 1.0], [0.5, 0.6]),
    ]
    differences = paired_differences(results, "b", "a", "tiny-word", "tiny-word")
    assert differences == pytest.approx([0.1, 0.1])


def test_validation_alone_chooses_among_tries_and_the_first_of_equals_wins() -> None:
    tries = [
        run_of("b", 0, [0.5, 0.9], [0.5, 0.6], attempt=0),
        run_of("b", 0, [0.5, 0.6], [0.5, 0.8], attempt=1),
        run_of("b", 0, [0.5, 1.0], [0.5, 0.8], attempt=2),
    ]
    assert choose_tries(tries) == {("b", "tiny-word"): 1}
    more = [
        run_of("b", 1, [0.5, 0.6], [0.5, validation], attempt) for attempt, validation in enumerate((0.9, 0.6, 0.6))
    ]
    assert choose_tries([*tries, *more]) == {("b", "tiny-word"): 0}


def test_cells_differ_in_what_was_asked_alone() -> None:
    study = small_study()
    trials = list(study.trials("run"))
    assert [(cell.method, cell.attempt) for cell in trials] == [("b", 0), ("b", 1)]  # a has nothing to choose from
    assert {cell.config.evaluation.datasets for cell in trials} == {()}
    cells = list(study.cells("run", {("a", "tiny-word"): 0, ("b", "tiny-word"): 1}))
    assert [(cell.method, cell.seed, cell.config.train.learning_rate) for cell in cells] == [
        ("a", 0, 5e-4),
        ("a", 1, 5e-4),
        ("b", 0, 1e-4),
        ("b", 1, 1e-4),
    ]
    assert cells[2].config.evaluation.datasets == ("tiny-word", "tiny-algebra")
    assert len({cell.key for cell in [*trials, *cells]}) == 6
    assert cells[0].config.name == "s: a tiny-word seed 0"
    assert list(study.trials("grpo")) == []


def test_a_cell_is_named_by_what_was_set() -> None:
    cell = next(small_study().cells("run", {}))
    told = cell.model_copy(update={"config": cell.config.model_copy(update={"seed": 9})})
    assert told.key != cell.key
    assert "shot_levels" not in cell.config.model_dump_json(exclude_defaults=True)


def test_committed_results_are_found_again() -> None:
    """A change that gives the study's runs other names would have them all run again."""
    committed = {file.stem for file in RESULTS.glob("tiny/cells/*.json")}
    study = study_of("tiny", quick=False)
    asked = set()
    for kind in ("run", "grpo"):
        asked |= {cell.key for cell in study.trials(kind)}
        asked |= {
            cell.key
            for method in study.methods
            for family in study.families
            for attempt in range(len(method.tries))
            for cell in study.cells(kind, {(method.name, family): attempt})
            if cell.method == method.name
        }
    unknown = {name for name in committed if not name.startswith("grpo") and name not in asked}
    assert (len(committed) > 0, unknown) == (True, set())


def test_committed_tables_are_those_of_the_committed_results(prefect_api: str) -> None:
    """`coppice study --preset tiny --so-far --output deployments/results/tiny` makes them."""
    found = run_study(study_of("tiny", quick=False), RESULTS / "tiny", so_far=True)
    committed = json.loads((RESULTS / "tiny" / "tiny.json").read_text(encoding="utf-8"))
    page = (RESULTS / "tiny" / "tiny.md").read_text(encoding="utf-8")
    assert study_markdown(found) == study_markdown(committed) == page
    assert found["results"] == committed["results"]


def test_tables_of_what_is_there_leave_out_what_is_not(prefect_api: str, tmp_path: Path) -> None:
    for file in (RESULTS / "tiny" / "cells").glob("*-tiny-word-seed-[01]-*.json"):
        (tmp_path / "cells").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "cells")
    found = run_study(study_of("tiny", quick=False), tmp_path, so_far=True)
    assert {(row["family"], row["seeds"]) for row in found["iterations"]} == {("tiny-word", 2)}
    assert run_study(study_of("tiny", quick=False), tmp_path / "none", so_far=True)["results"] == []


def test_two_methods_of_one_name_and_an_unknown_reference_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        small_study(methods=(METHODS[0], METHODS[0]))
    with pytest.raises(ValueError, match="'c' is none of the methods a, b"):
        small_study(reference="c")
    with pytest.raises(ValueError, match="'g' comes from outside"):
        small_study(methods=(*METHODS, Method(name="g", kind="grpo")), reference="g")


def test_an_iteration_that_did_not_train_leaves_the_policy_as_it_was() -> None:
    cell = next(small_study().trials("run"))
    search, nothing = {"tokens_generated": 70}, {"updates": 0, "kl": 0.0, "tokens": 0}
    rollouts = {"correct": 6, "wrong": 14}
    audit = {"num_problems": 10, "num_all_correct": 1, "num_all_wrong": 4, "num_steps": 35, "rollouts": rollouts}
    summary = {
        "base": {"tiny-word": 0.4},
        "base_sampled": {"tiny-word": {"avg@4": 0.3, "pass@4": 0.6}},
        "base_validation": 0.5,
        "iterations": [
            {
                "accuracy": {"tiny-word": 0.6},
                "sampled": {},
                "validation": 0.55,
                "audit": audit,
                "search": search,
                "train": {"updates": 5, "kl": 0.1, "tokens": 900, "negatives_pushed": 0.5},
                "seconds": {"search": 3.0, "train": 2.0, "evaluate": 50.0},
            },
            {
                "accuracy": {},
                "sampled": {},
                "validation": None,
                "search": search,
                "train": nothing,
                "seconds": {"search": 1.0},
            },
        ],
        "stopped_because": "the audit",
    }
    result = result_of(cell, summary)
    assert [policy.accuracy["tiny-word"] for policy in result.policies] == [0.4, 0.6, 0.6]
    assert [policy.generated_tokens for policy in result.policies] == [0, 70, 140]
    assert [policy.seconds for policy in result.policies] == [0.0, 5.0, 6.0]
    assert (result.champion, result.best.sampled, result.policies[0].sampled) == (1, {}, {"tiny-word": 0.3})
    searched = {"right": 0.3, "solved": 0.6, "all_right": 0.1, "distinct_steps": 3.5, "tokens_per_rollout": 3.5}
    assert [policy.search for policy in result.policies] == [{}, pytest.approx(searched), {}]
    assert [policy.negatives_pushed for policy in result.policies] == [None, 0.5, None]


def test_a_run_rises_until_its_validation_accuracy_falls() -> None:
    for validation, expected in (([0.5, 0.6, 0.6, 0.7], 3), ([0.5, 0.6, 0.55, 0.7], 1), ([0.5, 0.4, 0.7], 0)):
        assert run_of("a", 0, validation, validation).rises_for == expected


def test_what_searches_found_is_a_row_for_each_iteration() -> None:
    runs = [run_of("a", seed, [0.5, 0.7], [0.5, 0.6]) for seed in (0, 1)]
    for run, right in zip(runs, (0.4, 0.6), strict=True):
        search = {"right": right, "solved": 0.9, "all_right": 0.1, "distinct_steps": 3.0, "tokens_per_rollout": 20.0}
        object.__setattr__(run, "policies", (run.policies[0], run.policies[1].model_copy(update={"search": search})))
    found = study_json(small_study(), [], runs)
    (row,) = found["diagnostics"]
    assert (row["method"], row["iteration"], row["right"]["mean"]) == ("a", 1, pytest.approx(0.5))
    assert (
        "| tiny-word | a | 1 | 50.0 ±127.1 | 90.0 ±0.0 | 10.0 ±0.0 | 3.0 | 20.0 | – | – | 70.0 ±0.0 |"
        in study_markdown(found)
    )


def test_tables_have_means_intervals_differences_and_transfer() -> None:
    results = [
        run_of("a", 0, [0.5, 0.70], [0.5, 0.6]),
        run_of("a", 1, [0.5, 0.72], [0.5, 0.6]),
        run_of("b", 0, [0.5, 0.75, 0.7], [0.5, 0.6, 0.5]),
        run_of("b", 1, [0.5, 0.77, 0.6], [0.5, 0.6, 0.5]),
    ]
    found = study_json(small_study(), results[:1], results)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    by_method = {row["method"]: row for row in found["iterations"]}
    assert by_method["b"]["best"]["mean"] == pytest.approx(0.76)
    assert by_method["b"]["difference"]["mean"] == pytest.approx(0.05)
    assert by_method["b"]["difference"]["interval"] == pytest.approx([0.05, 0.05])
    assert by_method["a"]["difference"] is None
    assert [row["generated_tokens"] for row in found["iterations"]] == [100, 200]
    text = study_markdown(found)
    assert "| a | 50.0 ±0.0 | 71.0 ±12.7 |  | 71.0 ±12.7 | – | – | 1.0 | 100 | 0 | 0 | 0 |" in text
    assert "| tiny-word | tiny-algebra | b | 40.0 ±0.0 | 66.0 ±12.7 | +5.0 [+5.0, +5.0] |" in text
    assert "| a | tiny-word | 1 | 0 | 60.0 | 1 |  |" in text


def test_the_page_has_a_figure_for_each_family_and_asks_no_network() -> None:
    results = [run_of(name, seed, [0.5, 0.7], [0.5, 0.6]) for name in ("a", "b") for seed in (0, 1)]
    page = study_page(study_json(small_study(), results[:1], results))
    assert page.count('<figure class="chart">') == 1
    assert page.count('class="mark s0 full"') == page.count('class="mark s1 full"') == 2
    assert "<td>70.0 ±0.0</td>" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_a_bar_in_a_cell_stays_in_it() -> None:
    assert markdown_table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"


def test_a_part_of_a_study_keeps_its_reference() -> None:
    study = study_of("tiny", quick=True)
    part = narrowed(study, ["coppice"], [], [3])
    assert ([method.name for method in part.methods], part.seeds) == (["coppice", "rft"], (3,))
    with pytest.raises(ConfigError, match="--method copice: the study has coppice, "):
        narrowed(study, ["copice"], [], [])
    with pytest.raises(ConfigError, match="--family gsm8k: the study has tiny-word"):
        narrowed(study, [], ["gsm8k"], [])
    with pytest.raises(ConfigError, match="there is no study of it"):
        study_of("gsm8k", quick=False)
    with pytest.raises(ConfigError, match="--question rank: a study of tiny answers objectives, verifiers, "):
        study_of("tiny", "rank", quick=False)


def test_methods_of_ones_own_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("- {name: mine, settings: ['train.negative_clip=0'], tries: [[], ['seed=3']]}\n")
    study = with_methods(study_of("tiny", quick=True), file)
    assert [method.name for method in study.methods] == ["mine", "rft"]
    assert len(study.methods[0].tries) == 2
    file.write_text("- {name: mine, setting: []}\n")
    with pytest.raises(ConfigError, match=r"m\.yaml: 0\.setting: Extra inputs"):
        with_methods(study, file)
    file.write_text("- {name: mine}\n- {name: mine}\n")
    with pytest.raises(ConfigError, match=r"m\.yaml: Value error, two methods have one name"):
        with_methods(study, file)
    file.write_text("- {name: [\n")
    with pytest.raises(ConfigError, match=r"m\.yaml: while parsing"):
        with_methods(study, file)
    with pytest.raises(ConfigError, match="No such file"):
        with_methods(study, tmp_path / "none.yaml")


def study_command(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    methods = home.parent / "methods.yaml"
    methods.write_text("- {name: coppice}\n- {name: rft, settings: ['train.objective=rft']}\n")
    words = ["--quick", "--methods", str(methods), "--seed", "0", "--parallel", "1", *arguments]
    small = ("num_iterations=1", "policy.backend=scripted", "problems.num_problems=16", "evaluation.num_problems=8")
    for setting in small:
        words += ["--set", setting]
    return subprocess.Popen(
        [sys.executable, "-m", "deployments.command.app", "study", *words],
        env={**os.environ, "COPPICE_HOME": str(home), "PREFECT_API_URL": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_a_study_that_is_ended_goes_on_where_it_was(tmp_path: Path) -> None:
    home, tables = tmp_path / "home", tmp_path / "tables"
    cells = tables / "cells"
    with study_command(home, "--output", str(tables)) as first:
        deadline = time.monotonic() + 240
        while not list(cells.glob("*.json")):  # the first run has ended, the second one is at work
            assert first.poll() is None, first.stdout and first.stdout.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        children = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 128 + signal.SIGTERM
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    before = {file.name: file.stat().st_mtime_ns for file in cells.glob("coppice-*.json")}
    assert len(before) == 1
    with study_command(tmp_path / "another machine", "--output", str(tables)) as second:
        output = second.communicate(timeout=300)[0].decode()
    assert second.returncode == 0, output
    assert {name: (cells / name).stat().st_mtime_ns for name in before} == before
    found = json.loads((tables / "tiny-quick.json").read_text())
    assert [(row["method"], row["seeds"]) for row in found["iterations"]] == [("coppice", 1), ("rft", 1)]
    assert (tables / "tiny-quick.md").read_text() == study_markdown(found)
    assert (tables / "tiny-quick.html").read_text() == study_page(found)
    assert "difference to rft" in output


@pytest.mark.slow
def test_a_run_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    with study_command(tmp_path / "home", "--set", 'policy.model="/nowhere"') as process:
        output = process.communicate(timeout=200)[0].decode()
    assert process.returncode == 2
    assert output.splitlines()[-1].startswith("coppice: coppice tiny-word seed 0: exit code 2, coppice: ")
    assert "log: " in output


def test_independent_rollouts_ask_fewer_problems_for_as_many_tokens() -> None:
    for quick, num_problems, expected in ((True, 60, 48), (False, 200, 135)):
        study = study_of("tiny", quick=quick)
        sizes = {
            method.name: study.cell(method, "tiny-word", 0, 0).config.problems.num_problems
            for method in study.methods
            if method.kind == "run"
        }
        assert sizes.pop("rft-independent") == expected
        assert set(sizes.values()) == {num_problems}


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_method_has_as_many_tries_and_each_is_a_setting_of_its_own(question: str) -> None:
    num_tries = {"objectives": 5, "verifiers": 3, "ranks": 3}.get(question, 1)
    for quick, expected in ((True, 1), (False, num_tries)):
        study = study_of("tiny", question, quick=quick)
        assert {len(method.tries) for method in study.methods} == {expected}
    told = set()
    for method in study.methods:
        cells = [study.cell(method, "tiny-word", 0, attempt) for attempt in range(num_tries)]
        configs = [cell.config.model_copy(update={"name": None}).model_dump_json() for cell in cells]
        told |= {(cell.kind, config, cell.options) for cell, config in zip(cells, configs, strict=True)}
    assert len(told) == num_tries * len(study.methods)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_quick_study_has_two_seeds_and_no_method_of_another_size(question: str) -> None:
    study = study_of("tiny", question, quick=True)
    cells = list(study.cells("run", {}))
    assert (study.seeds, {cell.config.num_iterations for cell in cells}) == ((0, 1), {2})
    sizes = {cell.config.problems.num_problems for cell in cells if cell.method != "rft-independent"}
    assert sizes == {60}
