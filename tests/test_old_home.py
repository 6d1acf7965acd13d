"""A home that version 0.1.0 left: what its store holds is found again, and every command works on it.

It holds two iterations of a small run: the store, the tracking database and its artifacts.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tarfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from run_fixtures import client, manifests

from deployments.command import app as cli
from deployments.presets import preset
from pipeline_lib.config import PipelineConfig, Settings, apply_overrides
from pipeline_lib.store import Entry, StoreError
from pipeline_lib.types import Ref, RunResult

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]
ARCHIVE = Path(__file__).parent / "golden" / "home-0.1.0.tar.xz"
PLACE = "/tmp/coppice-0.1.0"  # where it was made, as its database says
SETTINGS = (  # of the run that is in the archive
    "search.num_shards=2",
    "num_iterations=2",
    "problems.num_problems=24",
    "problems.num_validation=16",
    "search.num_simulations=8",
    "evaluation.num_problems=16",
    "evaluation.sampled_problems=4",
    "evaluation.datasets=tiny-word",
    "train.lora_rank=4",
)


@pytest.fixture
def old_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home, unpacked elsewhere than where it was made."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    home = tmp_path / "coppice-0.1.0"
    move_database(home / "mlflow.db", home)
    monkeypatch.setenv("COPPICE_HOME", str(home))
    return home


def move_database(database: Path, home: Path) -> None:
    """MLflow keeps whole addresses; they follow the home."""
    with closing(sqlite3.connect(database)) as connection, connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                    connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (PLACE, str(home)))


def config(*overrides: str) -> PipelineConfig:
    return apply_overrides(preset("tiny"), [*SETTINGS, *overrides])


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("deployments.environment.prepare_environment", lambda *_, **__: None)  # it outlives a test
    monkeypatch.setattr(sys, "argv", ["coppice", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0


def old_shards(settings: PipelineConfig, problems: Ref) -> tuple[Ref, ...]:
    """The shards of its first iteration, found without a flow."""
    from tasks.runtime.policies import base_policy
    from tasks.search import FIRST_VERSION, _searched

    same = {"config": settings, "problems": problems, "policy": base_policy(settings), "iteration": 1, "earlier": ()}
    [shards] = list(_searched(same, version=FIRST_VERSION))
    return tuple(ref for ref in shards if ref is not None)


@pytest.mark.parametrize("num_shards", [1, 2, 8])
def test_what_version_0_1_0_made_of_an_iteration_is_found_with_any_number_of_shards(
    old_home: Path, num_shards: int
) -> None:
    from tasks.audit import audit_iteration
    from tasks.problems import draw_problems
    from tasks.score import score_steps
    from tasks.search import load_trees

    settings = config(f"search.num_shards={num_shards}")
    run = {"config": settings, "iteration": 1}
    problems = draw_problems.entry(**run).ref()  # each `ref` raises where the store lacks the entry
    shards = old_shards(settings, problems)
    scores = score_steps.entry(**run, trees=shards).ref()
    audit_iteration.entry(**run, trees=shards, scores=scores, earlier=()).ref()
    draw_problems.entry(config=settings, iteration=0).ref()
    assert sum(tree.num_rollouts for tree in load_trees(shards)) == 24 * 8


def test_what_is_made_in_another_way_since_is_made_again(old_home: Path) -> None:
    """Trainings clip before they normalise; answers that were sampled are counted by what the grader holds equal."""
    from tasks.evaluate import evaluate_policy
    from tasks.problems import draw_problems
    from tasks.runtime.policies import base_policy
    from tasks.score import score_steps
    from tasks.train import train_policy

    def evaluation(settings: PipelineConfig) -> Entry:
        validation = draw_problems.entry(config=settings, iteration=0).ref()
        measured = {"config": settings, "problems": validation, "split": "validation", "name": "tiny-word validation"}
        return evaluate_policy.entry(**measured, policy=base_policy(settings))

    settings = config()
    shards = old_shards(settings, draw_problems.entry(config=settings, iteration=1).ref())
    scores = score_steps.entry(config=settings, iteration=1, trees=shards).ref()
    training = {"config": settings, "iteration": 1, "trees": shards, "scores": scores, "policy": base_policy(settings)}
    for entry in (train_policy.entry(**training), evaluation(settings)):
        with pytest.raises(StoreError, match="is not complete"):
            entry.ref()


def test_a_rerun_searches_its_first_iteration_no_more(
    old_home: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.self_training import self_training

    before = manifests(old_home)
    commits: Counter[str] = Counter()
    commit = Entry.commit
    monkeypatch.setattr(
        Entry, "commit", lambda self, *rest: commits.update([self.uri.split("/")[0]]) or commit(self, *rest)
    )
    result = self_training(config("num_iterations=1", "search.num_shards=3"))
    assert commits["train-policy"] == 1
    assert {*commits} & {"search-shard", "gather-trees", "score-steps", "audit-iteration", "draw-problems"} == set()
    assert [record.index for record in result.records] == [0, 1]
    assert result.records[1].search["num_rollouts"] == 24 * 8
    assert before.items() <= manifests(old_home).items(), "nothing that was there is changed"


def old_result(home: Path) -> RunResult:
    from pipeline_lib.tracking import load_run

    settings, result = load_run(Settings())
    assert settings.search.num_shards == 2
    return result


def test_its_run_is_read_reported_and_compared(old_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline_lib.gate import decide
    from tasks.record import _paired_tests

    result = old_result(old_home)
    assert decide(result.records, config().gate, dataset="tiny-word") == result.decision
    base, first, second = result.records
    again = _paired_tests(second.evaluations, [base, first], "tiny-word")
    by_name = {(test.split, test.against): test for test in again}
    for test in second.paired:
        found = by_name[test.split, test.against]
        assert (found.num_fixed, found.num_broken, found.interval) == (test.num_fixed, test.num_broken, test.interval)
    output = tmp_path / "report.html"
    run_command(monkeypatch, "report", "--output", str(output))
    page = output.read_text(encoding="utf-8")
    assert 'class="node' in page
    assert result.stopped_because in page
    assert all(f"{100 * report.accuracy:.1f}" in page for record in result.records for report in record.evaluations)


def test_its_versions_are_promoted_rolled_back_and_measured(
    old_home: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.evaluate_champion import evaluate_champion

    run_command(monkeypatch, "promote", "--version", "2", "--force", "--reason", "tried")
    model = client(old_home).get_registered_model("coppice-tiny")
    assert str(model.aliases["champion"]) == "2"
    run_command(monkeypatch, "rollback", "--reason", "tried")
    assert str(client(old_home).get_registered_model("coppice-tiny").aliases["champion"]) == "1"
    [report] = evaluate_champion(config())
    assert report.accuracy == old_result(old_home).records[1].evaluations[1].accuracy


def test_a_new_version_is_compared_with_its_champion(old_home: Path) -> None:
    """By the yardstick that the old version's tags hold: problems, grader, length, and what was cut off graded."""
    from tasks.evaluate import _yardstick
    from tasks.problems import draw_problems

    validation = draw_problems.entry(config=config(), iteration=0).ref()
    settings = config("truncated=grade")
    champion = client(old_home).get_model_version("coppice-tiny", "1")
    assert champion.tags["coppice.validation.yardstick"] == _yardstick(settings, validation, "tiny-word")


def test_records_of_an_earlier_version_and_of_a_later_one_are_read(old_home: Path) -> None:
    from pipeline_lib.tracking import load_run
    from tasks.finish import finish_run, load_result
    from tasks.record import load_record, record_iteration

    kinds = {record_iteration.name: load_record, finish_run.name: load_result}
    for name, load in kinds.items():
        for folder in (old_home / "store" / name).iterdir():
            assert load(Entry(folder, f"{name}/{folder.name}")) is not None
    result = old_result(old_home)
    [file] = old_home.glob(f"mlartifacts/{result.tracking_run}/artifacts/run.json")
    saved = json.loads(file.read_text(encoding="utf-8"))
    saved["config"]["search"]["invented_later"] = 3
    saved["config"]["invented_later"] = {"a": 1}
    saved["result"]["records"][1]["audit"]["invented_later"] = [1]
    saved["result"]["invented_later"] = "x"
    file.write_text(json.dumps(saved), encoding="utf-8")
    settings, again = load_run(Settings())
    assert again == result
    assert settings.search.num_shards == 2
