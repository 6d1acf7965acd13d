"""A run that is asked for again and of which nothing is left: answered from the store, unless anything differs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from run_fixtures import SCRIPTED, SMALL, client, manifests, run_in

from deployments.command.options import build_config, what_differs
from deployments.command.output.summary import summary_json
from deployments.command.run import NOTHING_TO_DO, _known_result
from deployments.preflight.finished import finished_run
from pipeline_lib.config import PipelineConfig, Settings, apply_overrides
from pipeline_lib.grading.workers.verifier import verifier_digest
from pipeline_lib.types import RunResult

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]

SETTINGS = (*SMALL, *SCRIPTED, "grader=own_verifier:verify")
VERIFIER = "def verify(prediction, gold):\n    return prediction.split()[-1:] == [gold]\n"


@dataclass(frozen=True)
class Finished:
    """A home in which a run has ended, and what it came to; it holds the verifier, too."""

    home: Path
    result: RunResult

    def ask_again(self, *changes: str) -> RunResult | None:
        """What the command finds before it starts anything."""
        return finished_run(apply_overrides(asked(), [*changes]), Settings())


def asked() -> PipelineConfig:
    """What the command makes of the settings."""
    config = build_config("tiny", [*SETTINGS])
    return config.model_copy(update={"name": what_differs(config)})


def work_in(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("COPPICE_HOME", str(home))
    patch.setenv("PYTHONPATH", str(home), prepend=os.pathsep)
    verifier_digest.cache_clear()  # a command is a process of its own


@pytest.fixture(scope="module")
def original(prefect_api: str, new_home: Callable[[], Path]) -> Iterator[Finished]:
    home = new_home()
    (home / "own_verifier.py").write_text(VERIFIER, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        work_in(home, patch)
        yield Finished(home, run_in(home, asked()))
    verifier_digest.cache_clear()


@pytest.fixture
def finished(original: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """The same in a copy, for a test to change."""
    home = shutil.copytree(original.home, tmp_path / "home")
    work_in(home, monkeypatch)
    return replace(original, home=home)


def test_what_was_found_is_what_the_run_came_to(finished: Finished) -> None:
    before = manifests(finished.home)
    found = finished.ask_again()
    assert found is not None
    assert found.model_dump_json() == finished.result.model_dump_json()
    assert manifests(finished.home) == before


@pytest.mark.parametrize("change", ["seed=1", "train.learning_rate=0.002", "num_iterations=2", "name=another"])
def test_another_setting_is_another_run(finished: Finished, change: str) -> None:
    assert finished.ask_again(change) is None


def test_a_changed_file_of_the_user_is_another_run(finished: Finished) -> None:
    (finished.home / "own_verifier.py").write_text(f"{VERIFIER}# exact\n", encoding="utf-8")
    verifier_digest.cache_clear()
    assert finished.ask_again() is None


@pytest.mark.parametrize(
    "file",
    ["evaluate-policy/*/report.json", "gather-trees/*/trees.parquet", "train-policy/*/observations.json"]
    + [f"{stage}/*/manifest.json" for stage in ("draw-problems", "record-iteration", "finish-run")],
)
def test_damage_is_no_result(finished: Finished, file: str) -> None:
    path = sorted(finished.home.glob(f"store/{file}"))[0]
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert finished.ask_again() is None
    path.write_bytes(content)
    assert finished.ask_again() is not None


def test_a_run_that_mlflow_has_lost_is_put_on_record_again(finished: Finished) -> None:
    for record in (finished.result, *finished.result.records):
        assert record.tracking_run is not None
        client(finished.home).delete_run(record.tracking_run)
        assert finished.ask_again() is None
        client(finished.home).restore_run(record.tracking_run)
        assert finished.ask_again() is not None
    (finished.home / "mlflow.db").unlink()
    assert finished.ask_again() is None


def test_a_run_with_a_note_of_an_error_goes_the_ordinary_way(finished: Finished) -> None:
    assert finished.result.tracking_run is not None
    client(finished.home).set_tag(finished.result.tracking_run, "coppice.rerun_error", "the disk was full")
    assert finished.ask_again() is None


def test_another_commit_is_put_on_record(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.preflight.finished.checkout_commit", lambda: "f" * 40)
    assert finished.ask_again() is None


def test_a_moved_champion_is_looked_at_again(finished: Finished) -> None:
    mlflow = client(finished.home)
    [version] = mlflow.search_model_versions("name = 'coppice-tiny'")
    promotion = finished.result.promotion
    assert promotion is not None
    if promotion.promoted:
        mlflow.delete_registered_model_alias("coppice-tiny", "champion")
    else:
        mlflow.set_registered_model_alias("coppice-tiny", "champion", version.version)
    assert finished.ask_again() is None


def test_a_server_that_is_named_hears_of_every_run(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tests' own server is; see `is_named`."""
    assert _known_result(asked(), Settings()) is None
    assert _known_result(asked().model_copy(update={"runner": "ray"}), Settings()) is None


def test_the_command_starts_nothing_and_tells_the_same(finished: Finished, tmp_path: Path) -> None:
    code = (
        "import sys; from deployments.command.app import main\n"
        "main_ended = 0\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    main_ended = ended.code\n"
        "print([name for name in ('prefect', 'mlflow', 'torch', 'transformers') if name in sys.modules])\n"
        "sys.exit(main_ended)\n"
    )
    settings = [argument for setting in SETTINGS for argument in ("--set", setting)]
    command = [sys.executable, "-c", code, "run", *settings, "--summary", str(tmp_path / "summary.json")]
    path = os.pathsep.join([str(finished.home), str(Path(__file__).resolve().parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path)}
    environment.pop("PREFECT_API_URL", None)
    before = sorted(finished.home.rglob("*"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *_, loaded = done.stdout.splitlines()
    assert (first, loaded) == (NOTHING_TO_DO, "[]")
    assert f"MLflow run:            {finished.result.tracking_run}" in done.stdout
    assert sorted(finished.home.rglob("*")) == before
    told = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert told == json.loads(json.dumps(summary_json(finished.result, asked(), Settings())))
