from __future__ import annotations

import json
import re
from itertools import tee
from pathlib import Path

import pytest

from deployments.command.output.check_lines import print_check_lines
from deployments.preflight.check import CHECKS, run_checks
from deployments.preflight.findings import CheckLine, Findings
from deployments.preflight.problem_checks import check_problems
from deployments.preflight.rehearsal import Rehearsal, tokens_added
from deployments.preflight.run_checks import check_cost
from deployments.presets import preset
from pipeline_lib.config import Settings, TrainConfig, apply_overrides
from tasks.runtime.progress_lines import duration

pytestmark = pytest.mark.slow  # most of it is the import of torch

SMALL = (
    "policy.max_batch=16",
    "search.num_simulations=4",
    "evaluation.datasets=tiny-word",
    "evaluation.max_new_tokens=64",
    "evaluation.num_samples=0",
)


@pytest.fixture
def home(tmp_path: Path, new_home: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert callable(new_home)
    home: Path = new_home()
    monkeypatch.setenv("COPPICE_HOME", str(home))
    return home


def check_lines(*overrides: str, only: tuple[str, ...] = ()) -> dict[str, CheckLine]:
    """By check; with `only`, those alone are made."""
    config = apply_overrides(preset("tiny"), [*SMALL, *overrides])
    with pytest.MonkeyPatch.context() as patch:
        if only:
            patch.setattr("deployments.preflight.check.CHECKS", tuple(check for check in CHECKS if check.name in only))
        return {line.check: line for line in run_checks(config, Settings())}


def rows(path: Path, *answers: str) -> str:
    lines = [json.dumps({"question": f"What is {index}?", "answer": answer}) for index, answer in enumerate(answers)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_the_tiny_preset_passes_and_its_cost_is_told(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines, found_lines = tee(run_checks(apply_overrides(preset("tiny"), list(SMALL)), Settings()))
    assert print_check_lines(lines) == 0
    found = {line.check: line for line in found_lines}
    printed, progress = capfd.readouterr()
    assert printed.endswith("nothing stands in the way of a run\n")
    assert re.search(r"^one problem: search: 1/1 in \d+ s$", progress, re.MULTILINE)  # and not among the findings
    assert {line.verdict for line in found.values()} == {"ok"}
    assert list(found) == [check.name for check in CHECKS]
    assert "155,648 weights of a rank-16 adapter" in found["model"].text
    assert "tokens/s sampled" in found["one problem"].text
    time, room = r"(\d+ h )?\d+ (min|s)", r"[\d.]+ [kMGT]B"
    cost = (
        rf"3 iterations, each of [\d.]+ M tokens and {time}; {time} in all on this machine; {room} of disk, {room} free"
    )
    assert re.fullmatch(cost, found["cost"].text)
    assert not list(home.glob("store/*"))


def test_new_questions_are_in_the_cost_and_samples_ask_none(home: Path) -> None:
    """Behind worked examples, 500 questions of a test set cost more than the 15 tokens of their answers."""
    config = apply_overrides(preset("tiny"), [*SMALL, "evaluation.num_samples=4"])
    findings = Findings()
    check_problems(config, Settings(), findings)
    nothing = Rehearsal(
        sampled_per_s=1e9,
        seconds_per_prompt=1.0,
        tokens_per_answer=10.0,
        tokens_per_rollout=5.0,
        trained_per_s=1e9,
        trained_tokens=100.0,
        tree_bytes=1000,
        policy_bytes=1000,
        outcomes="1 correct",
        graded_in_turns=False,
    )
    findings.rehearsal = nothing
    asked_of_one = config.problems.num_validation + config.evaluation.num_problems
    iteration = config.problems.num_problems + asked_of_one
    whole = asked_of_one + config.num_iterations * iteration  # the base is asked too
    assert f"{duration(iteration)}; {duration(whole)} in all" in check_cost(config, Settings(), findings)


def test_worked_examples_that_all_trees_share_are_trained_on_once_a_pass() -> None:
    """Counted in each tree, they made a training behind four examples cost three times what it took."""

    def added(**limits: int) -> float:
        return tokens_added(380, 300, TrainConfig(**limits))

    assert added(tokens_per_microbatch=1536, tokens_per_update=4096) == 80 + 300 / 10
    assert added(tokens_per_microbatch=1536, tokens_per_update=768) == 80 + 300 / 2
    assert added(tokens_per_microbatch=128, tokens_per_update=768) == 380  # a tree that is larger than a pass
    assert tokens_added(380, 20, TrainConfig()) == 380  # too few for it to be done


@pytest.mark.parametrize(
    ("override", "check", "reason"),
    [
        ("problems.path=missing.jsonl", "problems", "missing.jsonl"),
        ("problems.num_validation=2", "problems", "none is left to train on"),
        ("policy.max_context_tokens=140", "prompts", "raise it to"),
        ("policy.max_context_tokens=100000", "model", "the model was made for 2048 tokens"),
        ("policy.max_batch=1000000", "memory", "lower policy.max_batch or policy.max_context_tokens"),
        ("policy.model=owner/name", "model", "hf download owner/name"),
    ],
)
def test_what_would_stop_a_run_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, check: str, reason: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = rows(tmp_path / "problems.jsonl", "1", "2")
    is_file = override.startswith("problems.")
    files = ("problems.dataset=file", f"problems.path={path}") if is_file else ()
    found = check_lines(*files, override, only=("problems", "model", "prompts", "memory"))
    assert found[check].verdict == "problem"
    assert reason in found[check].text
    assert "\n" not in found[check].text


def test_gold_answers_that_nobody_can_grade_are_counted(home: Path, tmp_path: Path) -> None:
    path = rows(tmp_path / "problems.jsonl", "1", "2", "\\frac{1}{2}", "2^{99999999999}")
    found = check_lines(
        "problems.dataset=file", f"problems.path={path}", "problems.num_validation=1", only=("problems", "gold answers")
    )
    assert "file/train: 4 tried, 1 cannot be graded (file/train/00003: '2^{99999999999}')" in found["gold answers"].text


def test_a_model_that_never_answers_is_no_surprise_later(home: Path) -> None:
    found = check_lines("search.max_new_tokens=2")
    assert found["one problem"].verdict == "problem"
    assert "raise search.max_new_tokens" in found["one problem"].text
    assert found["cost"] == CheckLine("cost", "skipped", "needs the rehearsal")


def test_a_model_that_always_says_the_same_is_trained_all_the_same(home: Path) -> None:
    found = check_lines("search.temperature=0.001", "search.stop_after_equal=2")
    assert found["one problem"].verdict == "ok"
    assert "graded in turns" in found["one problem"].text


def test_prompts_that_fitted_are_not_measured_again_and_others_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.runtime import prompts

    measured = []
    measure = prompts.measure_prompts
    monkeypatch.setattr(prompts, "measure_prompts", lambda *given: measured.append(1) or measure(*given))
    config = apply_overrides(preset("tiny"), [*SMALL])
    for changed in (config, config, apply_overrides(config, ["policy.max_context_tokens=900"])):
        prompts.check_prompts(changed)
    assert len(measured) == 2
