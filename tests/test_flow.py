from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from export_fixtures import expected_answers, plain_answers
from run_fixtures import SCRIPTED, SMALL, children, client, manifests, run_in, small_config

from deployments.command import app as cli
from pipeline_lib.config import ConfigError, PipelineConfig
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.search import read_trees_parquet
from pipeline_lib.store import Entry
from pipeline_lib.types import IterationRecord, PolicyRef, RunResult

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]

EVALUATIONS = 3  # validation and two test sets


@pytest.fixture(scope="module")
def finished(new_home: Callable[[], Path]) -> tuple[Path, RunResult]:
    """A home in which the small run has ended."""
    home = new_home()
    return home, run_in(home, small_config())


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages whose body ran to its end."""
    names: list[str] = []
    commit = Entry.commit

    def counted(self: Entry, *args: object, **kwargs: object) -> object:
        names.append(self.path.parent.name)
        return commit(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Entry, "commit", counted)
    return names


def test_the_same_run_in_two_homes_gives_the_same_bytes(
    finished: tuple[Path, RunResult], new_home: Callable[[], Path]
) -> None:
    home, result = finished
    other = new_home()
    again = run_in(other, small_config())
    assert manifests(other) == manifests(home)
    assert [record.refs for record in again.records] == [record.refs for record in result.records]
    assert [record.policy for record in again.records] == [record.policy for record in result.records]
    assert again.decision == result.decision


def test_a_prompt_beyond_the_context_ends_a_run_before_it_begins(new_home: Callable[[], Path]) -> None:
    home = new_home()
    with pytest.raises(ConfigError, match=r"^tiny-word/.*: a prompt of .* policy\.max_context_tokens=140; raise it to"):
        run_in(home, small_config("policy.max_context_tokens=140"))
    assert manifests(home) == {}


def test_a_finished_run_is_not_computed_again(finished: tuple[Path, RunResult], commits: list[str]) -> None:
    home, result = finished
    again = run_in(home, small_config())
    assert commits == []
    assert again.records == result.records
    assert again.tracking_run == result.tracking_run


def test_a_plan_says_what_is_there_and_what_is_not(finished: tuple[Path, RunResult], commits: list[str]) -> None:
    from deployments.preflight.plan import plan_run

    home, _ = finished
    before = manifests(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        known = plan_run(small_config())
        changed = plan_run(small_config("train.learning_rate=0.002", "num_iterations=2"))
        *_, audit, again, depends = plan_run(small_config(), ["train-policy"])
    assert {stage.verdict for stage in known} == {"in the store"}
    assert [known[0].label, known[-1].label] == ["problems 0", "finish"]
    by_label = {stage.label: stage.verdict for stage in changed}
    assert (by_label["record 0"], by_label["gather 1"], by_label["train 1"]) == ("to do", "in the store", "to do")
    assert [stage.verdict for stage in changed[-2:]] == ["depends", "depends"]
    assert changed[-1].label == "iteration 2"
    assert [(stage.label, stage.verdict) for stage in (audit, again)] == [
        ("audit 1", "in the store"),
        ("train 1", "to do"),
    ]
    assert (again.note, depends.verdict) == ("made again", "depends")
    assert (commits, manifests(home)) == ([], before)


def test_a_stage_is_made_again_on_demand_in_a_run_of_its_own(
    finished: tuple[Path, RunResult], commits: list[str], tmp_path: Path
) -> None:
    from pipeline_lib.store.refresh import Refresh
    from tasks.runtime.stage import refreshing

    home, result = finished
    before = manifests(home)
    with refreshing(Refresh(tmp_path / "refresh.json", ["train-policy"])):
        again = run_in(home, small_config())
    assert sorted(commits) == ["finish-run", "record-iteration", "record-iteration", "train-policy"]
    assert before.items() <= manifests(home).items(), "the same bytes, so what follows is found"
    assert again.tracking_run != result.tracking_run
    assert [record.policy for record in again.records] == [record.policy for record in result.records]
    commits.clear()
    assert run_in(home, small_config()).tracking_run == result.tracking_run
    assert commits == []


def test_a_run_keeps_what_makes_it_again_and_what_it_said(
    finished: tuple[Path, RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.command.resumed import config_to_resume, recorded_config
    from pipeline_lib.config import Settings
    from pipeline_lib.tracking import load_text
    from pipeline_lib.tracking.history.run_folder import config_file, log_file

    home, result = finished
    assert result.tracking_run is not None
    monkeypatch.setenv("COPPICE_HOME", str(home))
    file = config_file(home, result.tracking_run)
    assert load_text(Settings(), result.tracking_run, "config.yaml") == file.read_text(encoding="utf-8")
    assert config_to_resume(Settings(), result.tracking_run[:6]) == small_config()
    file.unlink()  # another machine: MLflow has it, too
    assert recorded_config(Settings(), result.tracking_run) == small_config()
    said = log_file(home, result.tracking_run).read_text(encoding="utf-8")
    assert " search 1.0: 12/12 in " in said
    assert "ends: Completed" in said


def test_an_evaluation_is_tracked_once_with_its_data(finished: tuple[Path, RunResult]) -> None:
    from flows.evaluate_policy import evaluate_policy

    home, result = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        reports = [evaluate_policy(small_config(f"name={name}"), split="validation") for name in ("a", "b")]
    assert reports[0] == reports[1]
    mlflow = client(home)
    experiment = mlflow.get_run(result.tracking_run).info.experiment_id
    [run] = mlflow.search_runs([experiment], "tags.`coppice.evaluated` != ''")
    assert (run.info.status, run.data.tags["coppice.split"]) == ("FINISHED", "validation")
    assert run.data.metrics["validation/tiny-word/accuracy"] == reports[0][0].accuracy
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"evaluate/tiny-word", "validation/tiny-word"}


def test_one_parent_with_one_child_per_iteration(finished: tuple[Path, RunResult]) -> None:
    home, result = finished
    run_in(home, small_config())
    assert result.tracking_run is not None
    mlflow = client(home)
    parent = mlflow.get_run(result.tracking_run)
    runs = [parent, *children(home, result.tracking_run)]
    assert sorted(run.info.run_name for run in runs) == ["base", "iteration 1", "tiny seed 0"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.params["search.num_simulations"] == "8"
    for run in runs:
        for name in run.data.metrics:
            steps = [point.step for point in mlflow.get_metric_history(run.info.run_id, name)]
            assert len(steps) == len(set(steps)), name


def report_page(home: Path, store: Path, output: Path, run: str) -> str:
    """What `coppice report` writes with the tracking of one home and the store of another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(store))
        patch.setenv("COPPICE_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        patch.setattr("deployments.environment.prepare_environment", lambda *_, **__: None)  # it outlives a test
        patch.setattr(sys, "argv", ["coppice", "report", "--run", run, "--output", str(output)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0
    return output.read_text(encoding="utf-8")


def test_the_report_is_the_same_away_from_the_store_and_says_what_it_lacks(
    finished: tuple[Path, RunResult], tmp_path: Path
) -> None:
    home, result = finished
    run, output = result.tracking_run, tmp_path / "report.html"
    assert run is not None
    files = {path.name: path for path in (home / "mlartifacts" / run / "artifacts").iterdir()}
    logged = files["report.html"].read_text(encoding="utf-8")
    assert report_page(home, tmp_path, output, run) == logged
    assert all(
        part in logged for part in ('class="node', "What the model wrote", "KL to its start", "wrong, then right")
    )
    assert 'id="missing"' not in logged
    files["material.json"].rename(tmp_path / "material.json")
    from_store = report_page(home, home, output, run)
    assert from_store.count('class="node') == logged.count('class="node')
    assert "it left no material.json in MLflow" in from_store
    without = report_page(home, tmp_path, output, run)
    assert 'class="node' not in without
    assert "search trees of iteration 1: store: gather-trees/" in without
    (tmp_path / "material.json").rename(files["material.json"])
    [child] = [c for c in children(home, run) if c.info.run_name == "iteration 1"]
    for name in ("trees.html", "figures.html"):
        path = home / "mlartifacts" / child.info.run_id / "artifacts" / name
        assert ('class="node' if name == "trees.html" else "<svg") in path.read_text(encoding="utf-8")


def test_the_flow_run_shows_the_findings_and_where_the_report_is(finished: tuple[Path, RunResult]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    _, result = finished
    with get_client(sync_client=True) as prefect:
        shown = prefect.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["report"])))
    [text] = [a.data for a in shown if f"`report.html` of MLflow run `{result.tracking_run}`" in str(a.data)]
    assert "One iteration cannot tell" in text
    assert "| base |" in text
    assert result.decision.reason in text


def test_the_audit_stops_with_its_reason(finished: tuple[Path, RunResult], commits: list[str]) -> None:
    home, _ = finished
    result = run_in(home, small_config("audit.min_informative_share=1.0"))
    # Two shards searched on, their scores, the audits before and after; no training. Another run, so other records.
    assert sorted(commits) == [
        "announce",
        *["audit-iteration"] * 2,
        "decide-gate",
        "finish-run",
        "gather-trees",
        *["record-iteration"] * 2,
        "score-steps",
        *["search-shard"] * 2,
    ]
    audit = result.records[-1].audit
    assert audit is not None
    assert (audit.passed, audit.remedied) == (False, True)
    assert result.stopped_because == f"audit of iteration 1: {audit.reason}; {audit.advice}"
    assert result.decision.reason.startswith("validation accuracy ")
    assert result.decision.reason.endswith(f", the base; audit of iteration 1: {audit.reason}")
    again = audit.remedy
    assert again is not None
    assert (
        f"{again.num_problems} problems were searched again with {8 * again.num_problems} new rollouts" in audit.reason
    )
    assert result.decision.champion == 0
    rollouts = sum(client(home).get_run(r.tracking_run).data.metrics["search/num_rollouts"] for r in result.records[1:])
    assert rollouts > 24 * 8  # those before the remedy count too
    run = client(home).get_run(result.tracking_run)
    assert run.info.status == "FINISHED"
    assert run.data.tags["coppice.stopped_because"] == result.stopped_because


def test_the_remedy_is_left_out_where_answers_are_cut_off(new_home: Callable[[], Path], commits: list[str]) -> None:
    result = run_in(new_home(), small_config(*SCRIPTED, "search.max_new_tokens=3"))
    assert (commits.count("search-shard"), commits.count("audit-iteration")) == (2, 1)
    audit = result.records[-1].audit
    assert audit is not None
    assert (audit.passed, audit.remedied, audit.remedy) == (False, False, None)
    assert result.stopped_because.endswith("; raise search.max_new_tokens, or take a model that ends its answers")


def train_entry(home: Path, config: PipelineConfig, record: IterationRecord, parent: PolicyRef) -> Entry:
    """Where an iteration's training lies if it began with `parent`."""
    from tasks.train import train_policy

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        trees = tuple(ref for name, ref in record.refs.items() if name.startswith("search"))
        arguments = {"config": config, "policy": parent, "iteration": record.index}
        return train_policy.entry(trees=trees, scores=record.refs["score"], **arguments)


@pytest.mark.parametrize(("continue_from", "parents"), [("best", (0, 0)), ("last", (0, 1))])
def test_an_iteration_after_one_that_did_not_gain_starts_from_the_best(
    new_home: Callable[[], Path], continue_from: str, parents: tuple[int, int]
) -> None:
    """The scripted policy never gains: the base stays best, and iteration 2 is the base's child or iteration 1's."""
    home = new_home()
    settings = ("num_iterations=2", "gate.patience=3", f"gate.continue_from={continue_from}")
    config = small_config(*SCRIPTED, *settings)
    base, *iterations = run_in(home, config).records
    assert (base.parent, *(record.parent for record in iterations)) == (None, *parents)
    policies = [record.policy.policy_id for record in (base, *iterations)]
    mlflow = client(home)
    versions = {version.tags["coppice.policy_id"]: version for version in mlflow.search_model_versions()}
    for record, parent in zip(iterations, parents, strict=True):
        trees = read_trees_parquet(next(iter((home / "store" / record.refs["search"].uri).glob("*.parquet"))))
        assert {tree.policy_id for tree in trees} == {policies[parent]}
        trained = train_entry(home, config, record, [base, *iterations][parent].policy)
        assert record.refs["train"].uri == trained.uri
        version = versions[record.policy.policy_id]
        assert version.tags["coppice.parent_policy_id"] == policies[parent]
        assert version.tags["coppice.parent_version"] == (str(versions[policies[1]].version) if parent else "base")
        assert mlflow.get_run(record.tracking_run).data.tags["coppice.parent_iteration"] == str(parent)
    second = {(test.split, test.against): test.against_iteration for test in iterations[1].paired}
    assert second == {
        ("validation", "base"): 0,
        ("test", "base"): 0,
        ("validation", "previous"): 1,
        ("test", "previous"): 1,
        ("validation", "best"): 0,
    }


def test_a_failed_stage_is_all_that_runs_again(
    finished: tuple[Path, RunResult], commits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline_lib.training import loop

    home, _ = finished
    config = small_config("train.num_epochs=1")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", fail)
        with pytest.raises(RuntimeError, match="disk is on fire"):
            run_in(home, config)
    mlflow = client(home)
    failed = mlflow.search_runs(["1"], "tags.`coppice.error` != ''")
    assert [run.info.status for run in failed] == ["FAILED"]
    assert "disk is on fire" in failed[0].data.tags["coppice.error"]
    assert commits == ["record-iteration"]
    commits.clear()
    result = run_in(home, config)
    after = ["record-iteration", "decide-gate", "finish-run"]
    assert commits == ["train-policy", *["evaluate-policy"] * EVALUATIONS, *after]
    assert result.tracking_run == failed[0].info.run_id
    assert mlflow.get_run(result.tracking_run).info.status == "FINISHED"


def test_what_a_run_trained_leaves_the_house(
    finished: tuple[Path, RunResult], commits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_home, result = finished
    home, merged = tmp_path / "home", tmp_path / "merged"
    shutil.copytree(finished_home, home)
    monkeypatch.setenv("COPPICE_HOME", str(home))
    monkeypatch.setattr("deployments.environment.prepare_environment", lambda *_, **__: None)  # it outlives a test
    small = [argument for override in SMALL for argument in ("--set", override)]
    champion = "models:/coppice-tiny@champion"
    for order in (
        ("promote", "--version", "1", "--force", "--reason", "so small a run may choose its base"),
        ("export", "--champion", "--merge", "--output", str(merged)),
        ("evaluate", *small, "--adapter", champion, "--summary", str(tmp_path / "reports.json")),
    ):
        monkeypatch.setattr(sys, "argv", ["coppice", *order])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    assert commits == ["fetch-champion"]  # what the run measured of it is found
    trained = result.records[1]
    reports = json.loads((tmp_path / "reports.json").read_text())
    assert [r["accuracy"] for r in reports] == [r.accuracy for r in trained.evaluations if r.split == "test"]
    names = [run.info.run_name for run in client(home).search_runs(["1"], "tags.`coppice.evaluated` != ''")]
    assert f"tiny with adapter {trained.policy.policy_id[:8]} on test" in names
    found = plain_answers(
        tmp_path,
        adapters=[champion],
        models=[str(merged)],
        tokenizer=TINY_BASE,
        MLFLOW_TRACKING_URI=f"sqlite:///{home / 'mlflow.db'}",
    )
    expected = expected_answers(home / "store" / trained.refs["train"].uri / "policy")
    assert found == {champion: expected, str(merged): expected}


def test_gsm8k_is_audited_and_stopped(
    test_data: Path, new_home: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = new_home()
    summary = home / "summary.json"
    own = ["problems.dataset=gsm8k", f"problems.path={test_data / 'gsm8k' / 'train.parquet'}"]
    few = ("problems.num_problems=12", "problems.num_validation=6", "evaluation.num_problems=6")
    short = ("evaluation.max_new_tokens=32", "evaluation.num_samples=0")  # what is not asserted
    small = [*SMALL, *few, *short]
    overrides = [argument for override in [*small, *own] for argument in ("--set", override)]
    monkeypatch.setenv("COPPICE_HOME", str(home))
    monkeypatch.setattr("deployments.environment.prepare_environment", lambda *_, **__: None)  # it outlives a test
    monkeypatch.setattr(sys, "argv", ["coppice", "run", "--preset", "tiny", *overrides, "--summary", str(summary)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    written = json.loads(summary.read_text())
    assert written["champion"]["iteration"] == 0
    assert written["iterations"][0]["audit"]["passed"] is False
    reason = written["stopped_because"]
    assert "nothing informative" in reason
    assert "take a model" in reason
    assert f"stopped because: {reason}" in capsys.readouterr().out
    [run] = client(home).search_runs(["1"], "tags.`coppice.stopped_because` != ''")
    assert run.info.status == "FINISHED"
    assert run.data.tags["coppice.stopped_because"] == reason
