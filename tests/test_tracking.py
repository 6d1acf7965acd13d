from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from record_fixtures import make_record
from server_fixtures import free_port

from pipeline_lib.config import PipelineConfig, Settings, sqlite_file
from pipeline_lib.report.metrics import flatten, is_headline, metric_key, record_metrics
from pipeline_lib.tracking import (
    IterationContents,
    Tracker,
    TrackingError,
    TrackingOutage,
    has_finished,
    load_run,
    load_text,
    page_url,
    tracking_uri,
)
from pipeline_lib.tracking.client import open_client
from pipeline_lib.tracking.links import local_folder
from pipeline_lib.tracking.provenance import describe_environment
from pipeline_lib.tracking.tracked_run import TrackedRun
from pipeline_lib.types import GateDecision, IterationRecord, Ref, RunResult

logging.getLogger("mlflow").setLevel(logging.WARNING)


def make_result(records: list[IterationRecord]) -> RunResult:
    decision = GateDecision(proceed=False, champion=1, reason="no gain")
    return RunResult(records=tuple(records), decision=decision, stopped_because="no gain", wall_s=3.0)


@pytest.fixture(scope="module")
def settings(new_home: Callable[[], Path]) -> Settings:
    return Settings(home=new_home(), tracking_uri=None)


def open_tracker(settings: Settings, key: str, config: PipelineConfig | None = None) -> Tracker:
    return Tracker.open(settings, run_key=key, run_name=key, config=config or PipelineConfig(), tags={"a": "b"})


def test_metric_names_are_paths_that_mlflow_takes() -> None:
    assert metric_key("eval/gsm8k/maj@4") == "eval/gsm8k/maj_at_4"
    assert metric_key("score/variance/visits/8+") == "score/variance/visits/8_plus"
    metrics = record_metrics(make_record(1))
    assert metrics["eval/tiny-word/accuracy"] == 0.5
    assert metrics["time/search_s"] == 2.0
    assert metrics["train/kl"] == 0.1
    assert is_headline("eval/tiny-word/accuracy")
    assert not is_headline("eval/tiny-word/accuracy_low")


def test_flatten_dots_names_and_truncates_values() -> None:
    config = PipelineConfig.model_validate({"problems": {"path": "x" * 900}})
    params = flatten(config)
    assert params["search.c_uct"] == "1.0"
    assert params["evaluation.datasets"] == '["tiny-word", "tiny-algebra"]'
    assert len(params["problems.path"]) == 500


def test_environment_names_versions_and_hardware() -> None:
    tags = describe_environment()
    assert tags.keys() >= {"version/torch", "version/mlflow", "hardware/cpu", "hardware/cores", "hardware/memory_gib"}
    assert all(isinstance(value, str) for value in tags.values())


@pytest.mark.slow
def test_an_interrupted_run_is_attached_to_without_duplicates(settings: Settings, tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "part-0.json").write_text("[1]")
    curve = [("train/loss", update, 1.0 / (update + 1)) for update in range(1200)]
    first = open_tracker(settings, "interrupted")
    first.log_iteration(make_record(0))
    child = first.iteration_run(1)
    child.log_points(curve[:300])  # killed here: the parent and this child stay RUNNING

    second = open_tracker(settings, "interrupted")
    assert second.run_id == first.run_id
    for index in (0, 1):
        contents = IterationContents({"scores": scores}, {"figures.html": "<p>"}, curve if index else [])
        second.log_iteration(make_record(index), contents)
    second.finish(make_result([make_record(0), make_record(1)]))

    client = second._client
    runs = client.search_runs([second._experiment_id], "tags.`coppice.run_key` LIKE 'interrupted%'")
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == second.run_id]
    assert sorted(run.data.tags["coppice.run_key"] for run in children) == ["interrupted/0", "interrupted/1"]
    points = client.get_metric_history(child.run_id, "train/loss")
    assert [point.step for point in points] == list(range(1200))
    assert [point.step for point in client.get_metric_history(second.run_id, "eval/tiny-word/accuracy")] == [0, 1]
    inputs = client.get_run(child.run_id).inputs.dataset_inputs
    digests = {item.dataset.name: item.dataset.digest for item in inputs}
    assert digests == {"trees": "f" * 36, "validation/tiny-word": "e" * 36, "test/tiny-word": "e" * 36}
    assert len(inputs) == len(digests)
    assert [file.path for file in client.list_artifacts(child.run_id, "scores")] == ["scores/part-0.json"]


@pytest.mark.slow
def test_a_finished_run_can_be_read_back(settings: Settings) -> None:
    config = PipelineConfig(seed=7)
    tracker = open_tracker(settings, "finished", config)
    result = make_result([make_record(0), make_record(1)])
    tracker.finish(result)
    assert load_run(settings, tracker.run_id) == (config, result)
    assert load_run(settings) == (config, result)
    with pytest.raises(TrackingError, match=r"no run\.json"):
        load_run(settings, "0" * 32)


@pytest.mark.slow
def test_two_runs_that_log_one_dataset_at_once_both_log_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow looks for a dataset and adds it where it is not: here the other run adds it in between."""
    import uuid
    from types import SimpleNamespace

    import mlflow

    client = open_client(settings)
    first, second = (TrackedRun(client, mlflow.entities, client.create_run("0")) for _ in range(2))
    shared = {"race": Ref(uri="draw-problems/race", sha256="5" * 64, num_rows=1, schema_version=1)}

    def draws_after_the_other_run() -> uuid.UUID:
        monkeypatch.undo()
        second.log_datasets(shared, root="store")
        return uuid.uuid4()

    store = "mlflow.store.tracking.sqlalchemy_store.uuid"
    monkeypatch.setattr(store, SimpleNamespace(uuid4=draws_after_the_other_run))
    first.log_datasets(shared, root="store")
    for run in (first, second):
        assert [each.dataset.name for each in client.get_run(run.run_id).inputs.dataset_inputs] == ["race"]


def test_one_key_for_two_configurations_is_refused(settings: Settings) -> None:
    open_tracker(settings, "reused", PipelineConfig(seed=1))
    with pytest.raises(TrackingError, match="seed=1, now 2"):
        open_tracker(settings, "reused", PipelineConfig(seed=2))


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_named_in_one_line_without_its_password(settings: Settings) -> None:
    nobody = Settings(home=settings.home, tracking_uri=f"http://me:secret@127.0.0.1:{free_port()}")
    with pytest.raises(TrackingOutage) as caught:
        open_tracker(nobody, "outage")
    line = r"tracking: http://127.0.0.1:\d+ does not answer \(.*refused\); start MLflow's server again, then retry: .*"
    assert re.fullmatch(line, str(caught.value))
    assert not has_finished(nobody, "0" * 32)
    for read in (lambda: load_run(nobody, "0" * 32), lambda: load_text(nobody, "0" * 32, "material.json")):
        with pytest.raises(TrackingOutage):  # not a run that is unknown, nor one that left nothing
            read()


@pytest.mark.slow
def test_a_failed_run_that_goes_on_forgets_its_error_and_a_finished_one_stays_finished(settings: Settings) -> None:
    tracker = open_tracker(settings, "goes on")
    tracker.end_with_error("FAILED", "the disk is on fire")
    assert not has_finished(settings, tracker.run_id)
    run = tracker._client.get_run(open_tracker(settings, "goes on").run_id)
    assert (run.info.status, "coppice.error" in run.data.tags) == ("RUNNING", False)
    tracker.finish(make_result([make_record(0)]))
    again = open_tracker(settings, "goes on")
    assert has_finished(settings, tracker.run_id)
    again.end_with_error("FAILED", "the page cannot be drawn")
    run = tracker._client.get_run(tracker.run_id)
    assert has_finished(settings, tracker.run_id)
    assert run.info.end_time == tracker._client.get_run(again.run_id).info.end_time
    assert run.data.tags["coppice.rerun_error"] == "the page cannot be drawn"
    assert "coppice.error" not in run.data.tags
    assert load_run(settings, tracker.run_id)[1].records
    open_tracker(settings, "goes on")
    assert "coppice.rerun_error" not in tracker._client.get_run(tracker.run_id).data.tags
    tracker._client.delete_run(tracker.run_id)
    assert not has_finished(settings, tracker.run_id)
    assert not has_finished(settings, "0" * 32)


@pytest.mark.slow
def test_a_commit_between_a_kill_and_the_restart_is_noted_on_the_same_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.runtime import flow_tracking

    config = PipelineConfig(seed=11)
    monkeypatch.setenv("COPPICE_HOME", str(settings.home))

    def started_at(commit: str) -> Tracker:
        monkeypatch.setattr(flow_tracking, "describe_environment", lambda: {"mlflow.source.git.commit": commit})
        return flow_tracking.open_tracker(config)

    first = started_at("aaa")
    second = started_at("bbb")
    assert second.run_id == first.run_id
    tags = first._client.get_run(first.run_id).data.tags
    assert (tags["mlflow.source.git.commit"], tags["coppice.commits"]) == ("bbb", "aaa bbb")
    second.finish(make_result([make_record(0)]))
    started_at("ccc")  # finds all it needs, or what was lost is made again
    tags = first._client.get_run(first.run_id).data.tags
    assert (tags["mlflow.source.git.commit"], tags["coppice.commits"]) == ("bbb", "aaa bbb ccc")


@pytest.mark.slow
def test_an_iteration_that_other_code_made_is_put_on_record_anew(settings: Settings) -> None:
    tracker = open_tracker(settings, "other code")
    before = make_record(1)
    run_id = tracker.log_iteration(before, IterationContents(curves=[("train/loss", 0, 2.0), ("train/loss", 1, 1.0)]))
    other = make_record(1, 0.75, policy_id="another")
    curves = [("train/loss", 0, 3.0), ("train/loss", 1, 2.5)]
    for _ in range(2):  # the second time nothing is new
        again = open_tracker(settings, "other code")
        assert again.log_iteration(other, IterationContents(curves=curves)) == run_id
    client = tracker._client
    assert client.get_run(run_id).data.metrics["eval/tiny-word/accuracy"] == 0.75
    assert client.get_run(tracker.run_id).data.metrics["eval/tiny-word/accuracy"] == 0.75
    history = [(point.step, point.value) for point in client.get_metric_history(run_id, "train/loss")]
    assert sorted(history) == [(0, 2.0), (0, 3.0), (1, 1.0), (1, 2.5)]


def logged_files(uri: str) -> Path:
    folder = local_folder(uri)
    assert folder is not None
    return folder


@pytest.mark.slow
def test_trees_and_weights_stand_once_and_outlive_the_store(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees, adapter = settings.home / "store" / "trees.parquet", settings.home / "store" / "policy"
    adapter.mkdir(parents=True)
    trees.write_bytes(b"trees")
    (adapter / "adapter.safetensors").write_bytes(b"weights")
    tracker = open_tracker(settings, "once")
    record = make_record(1, policy_id="once")
    contents = IterationContents({"search": trees}, adapter=adapter, parent=make_record(0).policy)
    run_id = tracker.log_iteration(record, contents)
    [model] = tracker._client.search_logged_models(["1"], filter_string="name = 'adapter-1'")
    files = {
        trees: logged_files(tracker._client.get_run(run_id).info.artifact_uri) / "search" / "trees.parquet",
        adapter / "adapter.safetensors": logged_files(model.artifact_location) / "adapter.safetensors",
    }
    for stored, logged in files.items():
        assert logged.samefile(stored)
        assert logged.stat().st_nlink == 2

    trees.unlink()  # a later version is another file: what a link leads to is never written
    trees.write_bytes(b"other trees")
    assert files[trees].read_bytes() == b"trees"

    def refused(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("pipeline_lib.tracking.links.os.link", refused)
    open_tracker(settings, "once").log_iteration(record, IterationContents({"search": trees}))
    assert files[trees].read_bytes() == b"other trees"
    assert not files[trees].samefile(trees)


@pytest.mark.slow
def test_a_home_may_have_any_name(new_home: Callable[[], Path], tmp_path: Path) -> None:
    home = new_home().rename(tmp_path / "50% of #1? a b")
    settings = Settings(home=home, tracking_uri=None)
    scores = tmp_path / "scores.json"
    scores.write_text("[1]")
    tracker = open_tracker(settings, "odd")
    run_id = tracker.log_iteration(make_record(1), IterationContents({"scores": scores}))
    tracker.finish(make_result([make_record(0), make_record(1)]), texts={"note.txt": "here"})
    assert load_run(settings)[1].records
    assert load_text(settings, tracker.run_id, "note.txt") == "here"
    assert load_text(settings, run_id, "scores/scores.json") == "[1]"
    assert sqlite_file(tracking_uri(settings)) == home / "mlflow.db"
    assert {path.name for path in tmp_path.iterdir()} == {home.name, "scores.json"}


def test_a_server_given_by_uri_wins_over_the_database(tmp_path: Path) -> None:
    assert tracking_uri(Settings(home=tmp_path, tracking_uri="http://127.0.0.1:5000")) == "http://127.0.0.1:5000"
    assert tracking_uri(Settings(home=tmp_path, tracking_uri=None)) == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_link_to_the_server_shows_no_password(tmp_path: Path) -> None:
    server = Settings(home=tmp_path, tracking_uri="http://me:secret@host:5000/mlflow/")
    assert page_url(server, "#/experiments/1") == "http://host:5000/mlflow/#/experiments/1"
    assert page_url(Settings(home=tmp_path, tracking_uri=None), "#/experiments/1") is None
