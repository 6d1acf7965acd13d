from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.metrics import flatten, is_headline, metric_key, record_metrics
from pipeline_lib.provenance import describe_environment
from pipeline_lib.tracking import Tracker, TrackingError, load_run, tracking_uri
from pipeline_lib.types import EvalReport, GateDecision, IterationRecord, PolicyRef, Ref, RunResult

logging.getLogger("mlflow").setLevel(logging.WARNING)


def make_record(index: int, accuracy: float = 0.5) -> IterationRecord:
    policy = PolicyRef(
        policy_id=f"policy-{index}", base_model="tiny", adapter_uri="train/x" if index else None, iteration=index
    )
    report = EvalReport(
        dataset="tiny-word",
        split="test",
        policy_id=policy.policy_id,
        num_problems=100,
        num_correct=int(100 * accuracy),
        num_unparsed=0,
        num_truncated=0,
        accuracy=accuracy,
        interval=(accuracy - 0.1, accuracy + 0.1),
        sampled={"maj@4": 0.25},
    )
    ref = Ref(uri="search/abc", sha256="f" * 64, num_rows=3, schema_version=1)
    return IterationRecord(
        index=index,
        policy=policy,
        evaluations=(report,),
        search={"tokens_per_s": 10.0},
        train={"kl": 0.1} if index else {},
        seconds={"search": 2.0},
        refs={"trees": ref},
    )


def make_result(records: list[IterationRecord]) -> RunResult:
    decision = GateDecision(proceed=False, champion=1, reason="no gain")
    return RunResult(records=tuple(records), decision=decision, stopped_because="no gain", wall_s=3.0)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), tracking_uri=None)


@pytest.fixture
def adapter_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


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
    child = first.iteration(1)
    child.log_points(curve[:300])  # killed here: the parent and this child stay RUNNING

    second = open_tracker(settings, "interrupted")
    assert second.run_id == first.run_id
    for index in (0, 1):
        second.log_iteration(
            make_record(index),
            artifacts={"scores": scores},
            texts={"figures/audit.html": "<p>"},
            curves=curve if index else [],
        )
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
    assert [(item.dataset.name, item.dataset.digest) for item in inputs] == [("trees", "f" * 36)]
    assert [file.path for file in client.list_artifacts(child.run_id, "scores")] == ["scores/part-0.json"]


@pytest.mark.slow
def test_a_finished_run_can_be_read_back(settings: Settings) -> None:
    config = PipelineConfig(seed=7)
    tracker = open_tracker(settings, "finished", config)
    tracker.set_champion(make_record(0))
    result = make_result([make_record(0), make_record(1)])
    tracker.finish(result)
    assert load_run(settings, tracker.run_id) == (config, result)
    assert load_run(settings) == (config, result)
    with pytest.raises(TrackingError, match=r"no run\.json"):
        load_run(settings, "0" * 32)


@pytest.mark.slow
def test_one_key_for_two_configurations_is_refused(settings: Settings) -> None:
    open_tracker(settings, "reused", PipelineConfig(seed=1))
    with pytest.raises(TrackingError, match="seed=1, now 2"):
        open_tracker(settings, "reused", PipelineConfig(seed=2))


@pytest.mark.slow
def test_an_adapter_is_registered_once_and_the_champion_can_be_loaded(
    settings: Settings, adapter_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = open_tracker(settings, "adapters")
    versions = [tracker.register_adapter(make_record(index), adapter_dir) for index in (1, 2, 1)]
    assert versions == ["1", "2", "1"]
    assert open_tracker(settings, "adapters").register_adapter(make_record(2), adapter_dir) == "2"
    assert tracker.set_champion(make_record(0)) is None
    assert tracker.set_champion(make_record(1)) == "1"
    client = tracker._client
    assert int(client.get_model_version_by_alias("coppice-tiny", "champion").version) == 1
    assert int(client.get_model_version_by_alias("coppice-tiny", "candidate").version) == 2
    assert len(client.search_logged_models([tracker._experiment_id])) == 2

    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(settings))
    loaded = Path(mlflow.artifacts.download_artifacts("models:/coppice-tiny@champion"))
    assert (loaded / "adapter_config.json").read_text() == "{}"


def test_a_server_given_by_uri_wins_over_the_database(tmp_path: Path) -> None:
    assert tracking_uri(Settings(home=tmp_path, tracking_uri="http://127.0.0.1:5000")) == "http://127.0.0.1:5000"
    assert tracking_uri(Settings(home=tmp_path, tracking_uri=None)) == f"sqlite:///{tmp_path}/mlflow.db"
