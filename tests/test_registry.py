"""Versions, lineage and the alias `champion`, in a real MLflow database."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from record_fixtures import make_record

from deployments import cli
from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.registry import LoggedAdapter, Registry, RegistryError
from pipeline_lib.tracking import Contents, Tracker, open_registry, tracking_uri
from pipeline_lib.types import GateDecision, IterationRecord, PolicyRef, Promotion

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]
BASE = PolicyRef(policy_id="base", base_model="tiny", iteration=0)
ORIGIN = {"prefect.flow_run_id": "f", "prefect.flow_run_url": "http://127.0.0.1:4200/runs/flow-run/f"}


@pytest.fixture(scope="module")
def settings(new_home: Callable[[], Path]) -> Settings:
    return Settings(home=new_home(), tracking_uri=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "adapter_config.json").write_text("{}")
    return folder


def open_tracker(settings: Settings) -> Tracker:
    return Tracker.open(settings, run_key="run", run_name="run", config=PipelineConfig(), tags=ORIGIN)


@pytest.fixture(scope="module")
def logged(settings: Settings, folder: Path) -> tuple[list[IterationRecord], LoggedAdapter]:
    """A run of three iterations, logged twice as after a retry, and one of its adapters."""
    records = [make_record(index, accuracy, yardstick="same") for index, accuracy in enumerate((0.5, 0.6, 0.7))]
    for record in [*records, *records]:
        before = records[record.index - 1].policy
        contents = Contents(adapter=folder, parent=before) if record.index else None
        open_tracker(settings).log_iteration(record, contents)
    client: Any = open_registry(settings, "tiny")._client
    [model] = client.search_logged_models(["1"], filter_string="name = 'adapter-1'")
    return records, LoggedAdapter(model.artifact_location, model.model_id, model.source_run_id, BASE, {})


@pytest.fixture
def registry(settings: Settings, logged: object, request: pytest.FixtureRequest) -> Registry:
    """The registered model of the test alone."""
    return open_registry(settings, request.node.name.replace("[", "-").replace("]", ""))


class Pipeline:
    """A run of which only the registry is seen: accuracies in, versions and aliases out."""

    def __init__(self, registry: Registry, adapter: LoggedAdapter) -> None:
        self.registry, self.adapter = registry, adapter
        self.records: list[IterationRecord] = []

    def run(self, *accuracies: float, yardstick: str = "same") -> Promotion:
        self.register(*accuracies, yardstick=yardstick)
        return self.settle()

    def register(self, *accuracies: float, yardstick: str = "same") -> None:
        self.records = [
            make_record(index, accuracy, policy_id=f"{accuracies}-{index}-{yardstick}", yardstick=yardstick)
            for index, accuracy in enumerate(accuracies)
        ]
        for record in self.records[1:]:
            self.registry.register(record, self.adapter)

    def settle(self) -> Promotion:
        best = max(self.records, key=lambda record: (record.evaluations[0].accuracy, -record.index)).index
        return self.registry.settle(self.records, GateDecision(proceed=False, champion=best, reason="the best"))


@pytest.fixture
def pipeline(registry: Registry, logged: tuple[object, LoggedAdapter]) -> Pipeline:
    return Pipeline(registry, logged[1])


def aliases(registry: Registry) -> tuple[str | None, str | None]:
    return registry._alias("candidate"), registry.champion()


def tags_of(registry: Registry, version: str) -> dict[str, str]:
    return registry._find(version)[1]


def test_a_version_has_its_scores_and_its_origin(
    settings: Settings, logged: tuple[list[IterationRecord], object]
) -> None:
    tracker = open_tracker(settings)
    tracker.settle(logged[0], GateDecision(proceed=False, champion=2, reason="the best"))
    registry = open_registry(settings, "tiny")
    client: Any = registry._client
    versions = client.search_model_versions("name = 'coppice-tiny'")
    assert sorted(version.version for version in versions) == [1, 2]
    expected = {
        "coppice.policy_id": "policy-2",
        "coppice.parent_policy_id": "policy-1",
        "coppice.parent_version": "1",
        "coppice.iteration": "2",
        "coppice.run_id": tracker.run_id,
        "coppice.gate": "chosen",
        "validation/tiny-word/accuracy": "0.7",
        "eval/tiny-word/accuracy_low": "0.6",
        "train/kl": "0.1",
        "digest/trees": "f" * 64,
        "digest/validation/tiny-word": "e" * 64,
        **ORIGIN,
    }
    assert expected.items() <= tags_of(registry, "2").items()
    assert tags_of(registry, "1")["coppice.parent_version"] == "base"
    assert tags_of(registry, "1")["coppice.gate"] == "not chosen: iteration 2 was better"
    newest = client.get_model_version("coppice-tiny", "2")
    assert "| tiny-word | validation | 70.0 ±10.0 |" in newest.description
    assert ORIGIN["prefect.flow_run_url"] in newest.description
    [model] = client.search_logged_models(["1"], filter_string="name = 'adapter-2'")
    assert {metric.key: metric.value for metric in model.metrics}["validation/tiny-word/accuracy"] == 0.7
    assert len(client.search_logged_models(["1"])) == 2
    child = client.get_run(newest.run_id)
    assert child.data.tags["coppice.version"] == "2"
    assert child.info.status == "FINISHED"
    assert "models:/coppice-tiny@champion" in client.get_registered_model("coppice-tiny").description


def test_the_champion_moves_to_a_better_one_only(pipeline: Pipeline) -> None:
    registry = pipeline.registry
    pipeline.register(0.5, 0.7)
    assert aliases(registry) == ("1", None)  # the gate has not spoken
    assert pipeline.settle().promoted
    assert aliases(registry) == ("1", "1")

    worse = pipeline.run(0.5, 0.6, 0.65)
    assert (worse.promoted, worse.version, worse.previous) == (False, "3", "1")
    assert "65.0% of 100 validation problems of tiny-word, against 70.0% for version 1" in worse.reason
    assert aliases(registry) == ("3", "1")
    assert not pipeline.run(0.4, 0.7).promoted
    incomparable = pipeline.run(0.5, 0.9, yardstick="another")
    assert not incomparable.promoted
    assert "coppice promote --version 5" in incomparable.reason
    assert pipeline.run(0.5, 0.4) == Promotion(
        promoted=False, previous="1", reason="the base stayed best; nothing to promote"
    )
    assert pipeline.run(0.5, 0.8).previous == "1"
    assert aliases(registry) == ("7", "7")


def test_a_rerun_repeats_the_verdict_and_undoes_nothing(pipeline: Pipeline) -> None:
    registry = pipeline.registry
    pipeline.run(0.5, 0.7)
    verdict = pipeline.run(0.5, 0.8)
    assert verdict == Promotion(promoted=True, version="2", previous="1", reason=verdict.reason)
    registry.roll_back("it swears")
    for accuracy in (0.8, 0.7):
        pipeline.run(0.5, accuracy)
        assert registry.champion() == "1"
    assert "rolled back" in tags_of(registry, "2")["coppice.promotion"]


def test_promotion_by_hand_needs_the_gate_or_a_reason(pipeline: Pipeline) -> None:
    registry = pipeline.registry
    with pytest.raises(RegistryError, match="has no candidate; versions: none"):
        registry.promote()
    pipeline.register(0.5, 0.6)
    with pytest.raises(RegistryError, match="version 1 has no word from the gate: its run did not finish"):
        registry.promote()
    pipeline.run(0.5, 0.7, 0.6)
    with pytest.raises(RegistryError, match="version 3 was not chosen: iteration 1 was better; --force"):
        registry.promote("3")
    with pytest.raises(RegistryError, match="has no version 9; versions: 1, 2, 3"):
        registry.promote("9")
    assert registry.promote("2").reason == "version 2 is champion already"
    forced = registry.promote("3", reason="shorter answers", force=True)
    assert forced.promoted
    assert forced.reason.endswith("(version 3 was not chosen: iteration 1 was better): shorter answers")
    assert registry.champion() == "3"
    assert tags_of(registry, "3")["coppice.promotion"] == f"promoted: {forced.reason}"
    assert registry.promote("2").previous == "3"


def test_rollbacks_go_back_through_the_champions(pipeline: Pipeline) -> None:
    registry = pipeline.registry
    with pytest.raises(RegistryError, match="has no champion; `coppice promote` names one"):
        registry.roll_back("why not")
    for accuracy in (0.6, 0.7, 0.8):
        pipeline.run(0.5, accuracy)
    client: Any = registry._client
    assert registry.roll_back("too slow") == Promotion(promoted=True, version="2", previous="3", reason="too slow")
    with pytest.raises(RegistryError, match=r"version 3 was rolled back: .*, too slow; --force"):
        registry.promote("3")
    client.delete_model_version(registry.name, "1")
    with pytest.raises(RegistryError, match="had no champion before version 2"):
        registry.roll_back("gone too far")
    registry.promote("3", reason="faster now", force=True)
    assert registry.roll_back("no").version == "2"
    history = client.get_registered_model(registry.name)
    moves = [line.split(" | ")[1:4] for line in history.description.splitlines() if line.startswith("| 20")]
    assert moves[:3] == [["rolled back", "2", "3"], ["promoted", "3", "2"], ["rolled back", "2", "3"]]
    assert [move[1] for move in moves[3:]] == ["3", "2", "1"]


@pytest.mark.parametrize("moment", ["set_registered_model_alias", "set_model_version_tag", "update_registered_model"])
def test_a_promotion_that_was_killed_is_finished_by_the_next_run(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed between the history, the alias and the tags; nothing is moved or written twice."""
    import mlflow

    registry, original = pipeline.registry, getattr(mlflow.MlflowClient, moment)
    pipeline.run(0.5, 0.6)
    pipeline.register(0.5, 0.7)

    def killed(self: Any, name: str, *arguments: Any, **named: Any) -> Any:
        if "champion" in arguments or "coppice.promotion" in arguments or moment.startswith("update"):
            raise KeyboardInterrupt
        return original(self, name, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.settle()
    verdict = pipeline.settle()
    assert (verdict.promoted, verdict.version) == (True, "2")
    assert "70.0% of 100 validation problems of tiny-word, against 60.0% for version 1" in verdict.reason
    assert registry.champion() == "2"
    assert [event.version for event in registry._events()] == ["1", "2"]
    assert tags_of(registry, "2")["coppice.promotion"].startswith("promoted: 70.0%")
    assert registry.roll_back("back").version == "1"


def test_both_commands_say_what_they_did(
    settings: Settings, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = pipeline.registry.name
    monkeypatch.setenv("COPPICE_HOME", str(settings.home))
    monkeypatch.setattr("deployments.environment.prepare_environment", lambda *_, **__: None)  # it outlives a test

    def coppice(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["coppice", *arguments, "--preset", name.removeprefix("coppice-")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), (shown.out + shown.err).strip()

    pipeline.run(0.5, 0.7)
    pipeline.run(0.5, 0.9, 0.8)
    moved = f"{name}@champion moved to version"
    code, line = coppice("promote", "--version", "3")
    assert (code, line.startswith(f"coppice: registry: {name} version 3 was not chosen")) == (2, True)
    assert coppice("promote", "--version", "3", "--force") == (
        2,
        "coppice: --force: needs --reason TEXT, which is kept in the registry",
    )
    assert coppice("rollback", "--reason", "wrong units") == (0, f"{moved} 1, instead of 2: wrong units")
    assert coppice("promote", "--version", "2", "--force", "--reason", "units were right") == (
        0,
        f"{moved} 2, instead of 1: {tags_of(pipeline.registry, '2')['coppice.promotion'].removeprefix('promoted: ')}",
    )
    code, line = coppice("promote")
    assert (code, line) == (
        0,
        f"{name}@champion stays at version 2: version 2 is champion already",
    )


def test_the_champion_is_downloaded_by_its_alias(
    settings: Settings, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    pipeline.run(0.5, 0.6)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(settings))
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{pipeline.registry.name}@champion"))
    assert (folder / "adapter_config.json").read_text() == "{}"
