"""Old runs leave a home, and what others need stays: kept runs, the champion, what a rollback goes back to."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock
from run_fixtures import SCRIPTED, client, small_config

from deployments.command import app as cli
from pipeline_lib.config import Settings
from pipeline_lib.store import Entry
from pipeline_lib.store.prune import files_below, freed_bytes, remove_entry, stored_entries, used_bytes
from pipeline_lib.tracking import download_champion, load_run, open_registry, registered_champion
from pipeline_lib.tracking.links import local_folder
from tasks.housekeeping.prune import nothing_else_running, plan_prune, prune
from tasks.housekeeping.usage import bytes_of_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]
SEEDS = ("seed=1", "seed=2", "seed=3")


def run(seed: str) -> None:
    from flows.self_training import self_training

    self_training(small_config(*SCRIPTED, seed))


def disk(home: Path) -> int:
    """Bytes of store, artifacts and MLflow's database; a file with two names counts once."""
    return used_bytes(files_below([home / "store", home / "mlartifacts", home / "mlflow.db"]))


def settings_of(home: Path) -> Settings:
    return Settings(home=home, tracking_uri=None, store=None)


@pytest.fixture(scope="module")
def grown(prefect_api: str, new_home: Callable[[], Path]) -> tuple[Path, int]:
    """A home of three runs, the first one's adapter deployed for ever, and what two of the runs took."""
    home = new_home()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        sizes = []
        for seed in SEEDS:
            run(seed)
            sizes.append(disk(home))
        registry = open_registry(settings_of(home), "tiny")
        registry.promote("1", reason="it is deployed", force=True)
    return home, sizes[1]


@pytest.fixture
def home(grown: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of all tests here, which stand in the order in which they change it."""
    monkeypatch.setenv("COPPICE_HOME", str(grown[0]))
    return grown[0]


def coppice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[str]]:
    monkeypatch.setattr("deployments.environment.prepare_environment", lambda *_, **__: None)  # it outlives a test
    monkeypatch.setattr(sys, "argv", ["coppice", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    return int(ended.value.code or 0), (shown.out + shown.err).splitlines()


def rows_left_behind(home: Path) -> dict[str, int]:
    """How many rows of MLflow's database are about runs and versions that are gone."""
    gone = {
        "inputs": "destination_type = 'RUN' AND destination_id NOT IN (SELECT run_uuid FROM runs)",
        "input_tags": "input_uuid NOT IN (SELECT input_uuid FROM inputs)",
        "datasets": "dataset_uuid NOT IN (SELECT source_id FROM inputs)",
        "model_version_tags": "version IN (SELECT version FROM model_versions WHERE current_stage LIKE 'Deleted%')",
    }
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        return {
            table: database.execute(f"SELECT count(*) FROM {table} WHERE {which}").fetchone()[0]
            for table, which in gone.items()
        }


def test_a_dry_run_says_what_would_go_and_touches_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in files_below([home / "store", home / "mlartifacts"])}
    code, lines = coppice(monkeypatch, capsys, "prune", "--keep-runs", "2", "--dry-run")
    assert code == 0
    assert lines[0].startswith("would go: tiny seed 1 (finished, started 20")
    assert lines[1].endswith("results in the store, 0 leftovers of kills")
    assert lines[2].endswith("MB in all")
    assert {file: file.stat().st_mtime_ns for file in files_below([home / "store", home / "mlartifacts"])} == before
    assert coppice(monkeypatch, capsys, "prune", "--keep-runs", "3", "--dry-run") == (0, ["nothing to prune"])
    young = ("prune", "--keep-runs", "2", "--older-than", "1h", "--dry-run")
    assert coppice(monkeypatch, capsys, *young) == (0, ["nothing to prune"])
    code, lines = coppice(monkeypatch, capsys, "prune", "--keep-runs", "2", "--older-than", "soon")
    assert (code, lines) == (2, ["coppice: --older-than soon: a number with h, d or w, as 30d"])


def test_trees_and_weights_of_a_run_stand_once(home: Path) -> None:
    weights = [file for file in files_below([home / "store", home / "mlartifacts"]) if file.suffix == ".safetensors"]
    assert len(weights) == 2 * len(SEEDS)
    assert len({file.stat().st_ino for file in weights}) == len(SEEDS)
    trees = files_below((home / "mlartifacts").rglob("search/*"))
    assert trees
    assert {file.stat().st_nlink for file in trees} == {2}
    latest = load_run(settings_of(home))[1].tracking_run
    assert latest is not None
    assert 0 < bytes_of_run(settings_of(home), latest) < disk(home)
    assert bytes_of_run(settings_of(home), "0" * 32) == 0


def test_nothing_is_pruned_while_a_run_goes_on_or_where_others_share(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileLock(home / "locks" / "abc.lock"):
        code, [line] = coppice(monkeypatch, capsys, "prune", "--keep-runs", "2")
    assert (code, line.startswith("coppice: prune: a run goes on in this home")) == (2, True)
    monkeypatch.setenv("COPPICE_STORE", str(home / "shared"))
    code, [line] = coppice(monkeypatch, capsys, "prune", "--keep-runs", "2")
    assert (code, line.startswith("coppice: prune: works on a home's own store and database")) == (2, True)


def test_after_a_prune_that_was_killed_and_one_more_kept_runs_and_the_champion_are_whole(
    grown: tuple[Path, int],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = settings_of(home)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for moment in ("tasks.housekeeping.prune.remove_runs", "pipeline_lib.tracking.history.removal.open_database"):
        with monkeypatch.context() as patch, nothing_else_running(settings):
            patch.setattr(moment, killed)
            plan = plan_prune(settings, keep_runs=2)
            with pytest.raises(KeyboardInterrupt):
                prune(settings, plan)
        assert load_run(settings)[1].records
    young, old = (home / "passed" / f"prompts-{name}" for name in ("young", "old"))
    young.parent.mkdir(exist_ok=True)
    young.touch()
    old.touch()
    os.utime(old, (1e9, 1e9))
    assert coppice(monkeypatch, capsys, "prune", "--keep-runs", "2")[0] == 0
    assert (young.exists(), old.exists()) == (True, False)

    runs = client(home).search_runs(["1"])
    assert {run.info.run_name for run in runs} == {"tiny seed 3", "tiny seed 2", "base", "iteration 1"}
    assert len(runs) == 6
    assert {folder.name for folder in (home / "runs").iterdir()} <= {run.info.run_id for run in runs}
    assert rows_left_behind(home) == {"inputs": 0, "input_tags": 0, "datasets": 0, "model_version_tags": 0}
    champion = registered_champion(settings, "tiny")
    assert champion is not None
    assert champion.version == "1"
    source = local_folder(champion.source)
    assert source is not None
    assert disk(home) - used_bytes(files_below([source])) == pytest.approx(grown[1], rel=0.1)
    files = download_champion(settings, champion, home / "downloaded")
    assert (files / "adapter_model.safetensors").stat().st_size > 0
    commits: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Entry, "commit", lambda self, *_: commits.append(self.uri))
        for seed in SEEDS[1:]:
            run(seed)
    assert commits == []
    run(SEEDS[0])  # one that was pruned is made again
    assert load_run(settings)[1].records


def test_a_damaged_result_is_found_and_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, [line] = coppice(monkeypatch, capsys, "store", "verify")
    assert (code, line.endswith("results are whole, 0 damaged")) == (0, True)
    trees = next(iter((home / "store" / "gather-trees").glob("*/trees.parquet")))
    trees.write_bytes(trees.read_bytes()[:-1] + b"?")
    code, [named, counts, what_to_do] = coppice(monkeypatch, capsys, "store", "verify")
    assert (code, counts.endswith(", 1 damaged")) == (1, True)
    assert named == f"gather-trees/{trees.parent.name}: trees.parquet was changed"
    assert "makes it again" in what_to_do


def test_an_entry_that_is_worked_on_or_young_stays(tmp_path: Path) -> None:
    entry = tmp_path / "store" / "train-policy" / "key"
    (entry / ".partial").mkdir(parents=True)
    (entry / ".partial" / "checkpoint").write_bytes(b"1234")
    [found] = stored_entries(tmp_path / "store")
    assert (found.uri, found.is_finished) == ("train-policy/key", False)
    assert time.time() - found.changed < 60
    with FileLock(entry / ".lock"):
        assert not remove_entry(entry)
    assert (entry / ".partial" / "checkpoint").exists()
    assert remove_entry(entry)
    assert not entry.exists()
    assert remove_entry(entry)


def test_a_file_with_a_further_name_frees_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert freed_bytes([tmp_path / "a"]) == 0
    assert freed_bytes([tmp_path / "a", tmp_path / "b"]) == 5
    assert used_bytes([tmp_path / "a", tmp_path / "b"]) == 5
