from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments import presets
from deployments.command import app
from deployments.command.options import PRESET_NAMES
from pipeline_lib.config import PipelineConfig
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
    """The command with a preset and a flow of its own, an empty home and a server that nobody asks."""
    own_presets = ModuleType("deployments.presets")
    own_presets.preset = lambda name: PipelineConfig(preset=name)  # type: ignore[attr-defined]
    own_presets.preset_names = lambda: ("tiny", "gsm8k-lora")  # type: ignore[attr-defined]
    flow = ModuleType("flows.self_training")
    flow.self_training = lambda config: make_result()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deployments.presets", own_presets)
    monkeypatch.setattr("deployments.presets", own_presets, raising=False)
    monkeypatch.setitem(sys.modules, "flows.self_training", flow)
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COPPICE_DEBUG", raising=False)
    monkeypatch.setattr("deployments.environment.prepare_environment", lambda *_, **__: None)  # it outlives a test
    monkeypatch.setattr("tasks.runtime.flow_tracking.run_key", lambda config: config.preset)  # it asks the hub
    monkeypatch.setattr("tasks.runtime.prompts.check_prompts", lambda *_: None)  # it loads the model's tokenizer
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4711/api"}):
        yield tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["coppice", *arguments])
    with pytest.raises(SystemExit) as caught:
        app.main()
    return int(caught.value.code or 0)


def test_help_and_version_load_nothing_heavy() -> None:
    code = f"""
import sys
from deployments.command import app
for option in ("--help", "--version"):
    try:
        app.app([option], prog_name="coppice")
    except SystemExit as ended:
        assert not ended.code
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    *_, version, loaded = done.stdout.splitlines()
    assert (version, loaded, done.stderr) == (f"coppice {importlib.metadata.version('coppice-reasoning')}", "[]", "")


def test_every_subcommand_and_each_of_its_options_has_a_help_text() -> None:
    group = typer.main.get_group(app.app)
    names = {name.replace("_", "-") for family in app.SUBCOMMANDS.values() for name in (f.__name__ for f in family)}
    old, groups = {function.__name__ for function in app.OLD_NAMES}, {"runs", "store"}
    assert {name for name, command in group.commands.items() if command.hidden} == old
    assert set(group.commands) == names | old | groups
    below = {
        f"{family} {name}": each
        for family in groups
        for name, each in group.commands[family].commands.items()  # type: ignore[attr-defined]
    }
    assert set(below) == {"runs ls", "runs show", "runs diff", "store verify"}
    for name, subcommand in (group.commands | below).items():
        assert (subcommand.help or "").rstrip().endswith("."), name
        assert [option.name for option in subcommand.params if not getattr(option, "help", None)] == [], name


def test_the_help_names_the_presets_that_there_are() -> None:
    assert PRESET_NAMES.replace(" or ", ", ").split(", ") == presets.preset_names()


def test_run_prints_the_table_and_writes_the_summary(
    command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = command / "summary.json"
    assert call(monkeypatch, "run", "--summary", str(summary), "--set", "seed=4", "--model", "some/model") == 0
    shown = capsys.readouterr().out
    for text in ("75.0 ±25.0", "champion: iteration 1", "1 of 1 iterations done", "http://127.0.0.1:4711", "mlflow.db"):
        assert text in shown
    written = json.loads(summary.read_text())
    places = written.pop("run")
    assert (places["home"], places["id"], places["adapter"]) == (str(command / "home"), None, None)
    assert [entry["policy_id"] for entry in places["iterations"]] == ["p", "p"]
    assert written == {
        "preset": "tiny",
        "seed": 4,
        "wall_s": 4.0,
        "base": {"tiny-word": 0.5},
        "base_sampled": {},
        "base_validation": 0.1,
        "base_truncated": {"tiny-word": {"truncated": 0, "ignored": 0}},
        "iterations": [
            {
                "index": 1,
                "accuracy": {"tiny-word": 0.75},
                "validation": 0.1,
                "interval": {"tiny-word": [0.5, 1.0]},
                "sampled": {},
                "truncated": {"tiny-word": {"truncated": 0, "ignored": 0}},
                "evaluate": {"engine_errors": None, "redrawn": None},
                "parent": None,
                "audit": None,
                "search": {
                    "tokens_per_s": 9.0,
                    "engine_idle_share": 0.1,
                    "tokens_generated": 5.0,
                    "tokens_kept": None,
                    "rollouts": 2.0,
                    "engine_errors": None,
                    "redrawn": None,
                },
                "train": {"updates": 3, "kl": None, "tokens": 7, "negatives_pushed": None},
                "seconds": {"search": 1.5},
            }
        ],
        "champion": {"iteration": 1, "accuracy": {"tiny-word": 0.75}, "sampled": {}},
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
        (["--summary", "/dev/full/out.json"], "cannot be written"),
        (["--summary", "/proc/out.json"], "cannot be written"),
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


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("COPPICE_LOCK_WAIT_S", "x", "COPPICE_LOCK_WAIT_S=x: input should be a valid number"),
        ("COPPICE_TRACKING_PATIENCE_S", "-1", "COPPICE_TRACKING_PATIENCE_S=-1: input should be greater"),
        ("COPPICE_HOME", "/dev/null/home", "COPPICE_HOME=/dev/null/home: /dev/null is no folder"),
        ("COPPICE_HOME", "/proc/home", "COPPICE_HOME=/proc/home: /proc cannot be written"),
        ("COPPICE_STORE", "/dev/null", "COPPICE_STORE=/dev/null: /dev/null is no folder"),
        ("COPPICE_STORE", "s4://bucket/folder", "COPPICE_STORE=s4://bucket/folder: fsspec knows no such protocol"),
        ("COPPICE_TRACKING_URI", "nonsense", "COPPICE_TRACKING_URI=nonsense: no address of an MLflow server"),
        ("COPPICE_TRACKING_URI", "htp://me:secret@host", "COPPICE_TRACKING_URI=htp://host: no address"),
        ("COPPICE_TRACKING_URI", "http://host:x", "COPPICE_TRACKING_URI=http://host:x: names no host"),
        ("COPPICE_TRACKING_URI", "sqlite:////dev/null/mlflow.db", "/dev/null is no folder"),
    ],
)
def test_a_bad_surrounding_is_one_line_and_exit_code_2_before_any_work(
    command: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    message: str,
) -> None:
    def work(config: PipelineConfig) -> RunResult:
        raise AssertionError("it has begun")

    monkeypatch.setattr(sys.modules["flows.self_training"], "self_training", work)
    monkeypatch.setenv(variable, value)
    assert call(monkeypatch, "run") == 2
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
        app.main()


def test_a_worker_is_started_by_its_old_name_too(
    command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        for name in ("worker", "serve"):
            assert call(monkeypatch, name, "--name", "one") == 2
    both, *rest = capsys.readouterr().err.splitlines()
    assert both.startswith("coppice: worker: no Prefect server is named; `make up` starts one")
    assert rest == ["coppice: `serve` is called `worker` now; the old name goes with the next version", both]


def test_bench_outside_a_checkout_says_what_to_do(
    command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deployments.command.tools.bench.ROOT", command)
    assert call(monkeypatch, "bench") == 2
    assert "from a checkout" in capsys.readouterr().err


def test_bench_runs_the_folder_and_hands_its_exit_code_on(command: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = command / "tests" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "__main__.py").write_text("import sys\nopen(sys.argv[2], 'w').write('{}')\nsys.exit(7)\n")
    monkeypatch.setattr("deployments.command.tools.bench.ROOT", command)
    assert call(monkeypatch, "bench", "--json", str(command / "ratios.json")) == 7
    assert (command / "ratios.json").read_text() == "{}"


def test_a_base_is_not_trained_for_a_place_that_cannot_hold_it(
    command: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command / "file").touch()
    assert call(monkeypatch, "build-base", "--output", str(command / "file" / "base")) == 2
    assert "cannot be written; name a folder" in capsys.readouterr().err
