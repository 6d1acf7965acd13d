from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from deployments.command import app as cli
from deployments.command import output as terminal
from deployments.environment import prepare_environment
from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.types import EvalReport, GateDecision, IterationRecord, PolicyRef, RunResult

HEAVY = ("torch", "prefect", "mlflow", "pandas", "transformers")


class DiskOnFireError(RuntimeError):
    """An error that is not ours."""


DiskOnFireError.__module__ = "somewhere.else"


def make_result() -> RunResult:
    records = []
    for index, accuracy in ((0, 0.5), (1, 0.75)):
        report = EvalReport(
            dataset="tiny-word",
            split="test",
            policy_id="p",
            num_problems=4,
            num_correct=int(4 * accuracy),
            num_unparsed=0,
            num_truncated=0,
            accuracy=accuracy,
            interval=(accuracy - 0.25, accuracy + 0.25),
        )
        search = {"tokens_per_s": 9.0, "engine_idle_share": 0.1, "tokens_generated": 5.0, "num_rollouts": 2.0}
        records.append(
            IterationRecord(
                index=index,
                policy=PolicyRef(policy_id="p", base_model="tiny", iteration=index),
                evaluations=(report, report.model_copy(update={"split": "validation", "accuracy": 0.1})),
                search=search,
                train={"updates": 3.0, "kl": float("nan"), "tokens": 7.0} if index else {},
                seconds={"search": 1.5},
            )
        )
    decision = GateDecision(proceed=False, champion=1, reason="a gain of 25 points")
    return RunResult(records=tuple(records), decision=decision, stopped_because="1 of 1 iterations done", wall_s=4.0)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The command with a preset and a flow of its own, an empty home and no server."""
    presets = ModuleType("deployments.presets")
    presets.preset = lambda name: PipelineConfig(preset=name)  # type: ignore[attr-defined]
    presets.preset_names = lambda: ("tiny", "gsm8k-lora")  # type: ignore[attr-defined]
    flow = ModuleType("flows.self_training")
    flow.self_training = lambda config: make_result()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deployments.presets", presets)
    monkeypatch.setattr("deployments.presets", presets, raising=False)
    monkeypatch.setitem(sys.modules, "flows.self_training", flow)
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COPPICE_DEBUG", raising=False)
    monkeypatch.setattr("deployments.environment.prepare_environment", lambda *_, **__: None)  # it outlives a test
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["coppice", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_help_loads_nothing_heavy() -> None:
    code = f"import deployments.command.app, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_run_prints_the_table_and_writes_the_summary(
    command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = command / "summary.json"
    assert call(monkeypatch, "run", "--summary", str(summary), "--set", "seed=4", "--model", "some/model") == 0
    shown = capsys.readouterr().out
    for text in ("75.0 ±25.0", "champion: iteration 1", "1 of 1 iterations done", "server start", "mlflow.db"):
        assert text in shown
    assert json.loads(summary.read_text()) == {
        "preset": "tiny",
        "seed": 4,
        "wall_s": 4.0,
        "base": {"tiny-word": 0.5},
        "iterations": [
            {
                "index": 1,
                "accuracy": {"tiny-word": 0.75},
                "interval": {"tiny-word": [0.5, 1.0]},
                "audit": None,
                "search": {
                    "tokens_per_s": 9.0,
                    "engine_idle_share": 0.1,
                    "tokens_generated": 5.0,
                    "tokens_kept": None,
                    "rollouts": 2.0,
                },
                "train": {"updates": 3, "kl": None, "tokens": 7},
                "seconds": {"search": 1.5},
            }
        ],
        "champion": {"iteration": 1, "accuracy": {"tiny-word": 0.75}},
        "stopped_because": "1 of 1 iterations done",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "search.c_utc=1"], "the nearest is 'search.c_uct'"),
        (["--set", "train.kl_beta=-1"], "greater than or equal to 0"),
        (["--set", "seed"], "expected NAME=VALUE"),
        (["--preset", "tyni"], "the nearest is 'tiny'"),
        (["--summary", "no/such/folder/out.json"], "cannot be written"),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_code_2(
    command: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert call(monkeypatch, "run", *arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_an_unexpected_error_is_one_line_and_exit_code_1(
    command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def burn(config: PipelineConfig) -> RunResult:
        raise DiskOnFireError("the disk\nis on fire")

    monkeypatch.setattr(sys.modules["flows.self_training"], "self_training", burn)
    assert call(monkeypatch, "run") == 1
    shown = capsys.readouterr().err
    assert shown == "coppice: DiskOnFireError: the disk is on fire (COPPICE_DEBUG=1 shows where)\n"
    monkeypatch.setenv("COPPICE_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["coppice", "run"])
    with pytest.raises(DiskOnFireError):
        cli.main()


def test_bench_outside_a_checkout_says_what_to_do(
    command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deployments.command.bench.ROOT", command)
    assert call(monkeypatch, "bench") == 2
    assert "from a checkout" in capsys.readouterr().err


def test_bench_runs_the_folder_and_hands_its_exit_code_on(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = command / "tests" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "__main__.py").write_text("import sys\nopen(sys.argv[2], 'w').write('{}')\nsys.exit(7)\n")
    monkeypatch.setattr("deployments.command.bench.ROOT", command)
    assert call(monkeypatch, "bench", "--json", str(command / "ratios.json")) == 7
    assert (command / "ratios.json").read_text() == "{}"


def test_the_environment_is_only_a_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {"DO_NOT_TRACK": "mine"})
    prepare_environment(Settings(home=tmp_path))
    assert os.environ["DO_NOT_TRACK"] == "mine"
    assert os.environ["PREFECT_LOCAL_STORAGE_PATH"] == str(tmp_path / "prefect")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_last_lines_name_the_servers_in_use_and_no_password() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        prefect, mlflow = terminal.ui_lines("postgresql://me:secret@host/db")
    assert prefect.endswith("prefect server start   then http://127.0.0.1:4200")
    assert "--backend-store-uri postgresql://host/db " in mlflow
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4711/api"}):
        prefect, mlflow = terminal.ui_lines("http://me:secret@host:5000")
    assert prefect.split() == ["stages", "and", "artifacts:", "http://127.0.0.1:4711"]
    assert mlflow.split() == ["metrics", "and", "models:", "http://host:5000"]


def test_a_base_is_not_trained_for_a_place_that_cannot_hold_it(
    command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command / "file").touch()
    assert call(monkeypatch, "build-base", "--output", str(command / "file" / "base")) == 2
    assert "cannot be written; name a folder" in capsys.readouterr().err


def test_progress_off_a_terminal_is_a_line_per_finished_stage() -> None:
    logger = logging.getLogger(terminal.PROGRESS_LOGGER)
    stream = io.StringIO()
    with terminal.show_progress(Console(file=stream)):
        for completed in (0, 1, 2, 2):
            logger.info("searching", extra={"stage": "search 1", "completed": completed, "total": 2})
        logger.info("iteration 1 passed its audit")
    assert stream.getvalue().splitlines() == ["search 1: 2/2", "iteration 1 passed its audit"]
    assert logger.handlers == []
