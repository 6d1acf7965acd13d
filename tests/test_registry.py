"""Versions, lineage and the alias `champion`, in a real MLflow database."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from record_fixtures import make_record

from deployments.command import app as cli
from pipeline_lib.config import ConfigError, PipelineConfig, Settings, apply_overrides
from pipeline_lib.policy.model_folders import model_path
from pipeline_lib.registry import LoggedAdapter, Registry, RegistryError
from pipeline_lib.registry.lineage import version_tags
from pipeline_lib.registry.model_note import load_lines
from pipeline_lib.report.notes import promotion_line
from pipeline_lib.tracking import IterationContents, Tracker, open_registry, registered_champion, tracking_uri
from pipeline_lib.tracking.outage import TrackingError
from pipeline_lib.types import GateDecision, IterationRecord, PolicyRef, Promotion
from tasks.champion import champion_policy

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
        contents = IterationContents(adapter=folder, parent=before) if record.index else None
        open_tracker(settings).log_iteration(record, contents)
    client: Any = open_registry(settings, "tiny")._client
    [model] = client.search_logged_models(["1"], filter_string="name = 'adapter-1'")
    return records, LoggedAdapter(model.artifact_location, model.model_id, model.source_run_id, {}, "")


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
        return self.apply_gate_decision()

    def register(self, *accuracies: float, yardstick: str = "same") -> None:
        self.records = [
            make_record(index, accuracy, policy_id=f"{accuracies}-{index}-{yardstick}", yardstick=yardstick)
            for index, accuracy in enumerate(accuracies)
        ]
        for record in self.records[1:]:
            tags = version_tags(record, BASE, None, {})
            self.registry.register(record.policy.policy_id, replace(self.adapter, tags=tags))

    def apply_gate_decision(self) -> Promotion:
        best = max(self.records, key=lambda record: (record.evaluations[0].accuracy, -record.index)).index
        return self.registry.apply_gate_decision(
            self.records, GateDecision(proceed=False, champion=best, reason="the best")
        )


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
    tracker.apply_gate_decision(logged[0], GateDecision(proceed=False, champion=2, reason="the best"))
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
    assert pipeline.apply_gate_decision().promoted
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


def test_a_rerun_says_what_was_replaced_then_and_not_now(pipeline: Pipeline) -> None:
    first = pipeline.run(0.5, 0.7)
    assert pipeline.apply_gate_decision() == first == Promotion(promoted=True, version="1", reason=first.reason)
    second = pipeline.run(0.5, 0.8)
    assert pipeline.apply_gate_decision() == second  # version 2 instead of 1, where the alias alone says 2 instead of 2
    assert promotion_line(pipeline.apply_gate_decision(), "m").startswith(
        "m@champion moved to version 2, instead of 1: "
    )
    kept = pipeline.run(0.5, 0.6)
    assert pipeline.apply_gate_decision() == kept
    old = pipeline.run(0.5, 0.7)
    assert (old.promoted, old.version, old.previous) == (True, "1", None)
    assert old.reason == f"{first.reason}; since then version 2 became champion"
    pipeline.registry.roll_back("it swears")
    assert pipeline.run(0.5, 0.7) == first
    assert promotion_line(pipeline.run(0.5, 0.8), "m").startswith(
        "m@champion stays at version 1 (version 2 is candidate)"
    )


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
            pipeline.apply_gate_decision()
    verdict = pipeline.apply_gate_decision()
    assert (verdict.promoted, verdict.version) == (True, "2")
    assert "70.0% of 100 validation problems of tiny-word, against 60.0% for version 1" in verdict.reason
    assert registry.champion() == "2"
    assert [move.version for move in registry._moves()] == ["1", "2"]
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


@pytest.fixture(scope="module")
def champion(settings: Settings, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A real adapter of the embedded base, registered as champion of a preset; and its files."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base, made = model_path("tiny"), tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    config = LoraConfig(r=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(made))
    settings_file = made / "adapter_config.json"
    written = json.loads(settings_file.read_text()) | {"base_model_name_or_path": "tiny"}  # as training leaves it
    settings_file.write_text(json.dumps(written))
    tracker = Tracker.open(settings, run_key="lora", run_name="lora", config=PipelineConfig(preset="lora"))
    tracker.log_iteration(make_record(1, policy_id="lora"), IterationContents(adapter=made, parent=BASE))
    tracker.apply_gate_decision(
        [make_record(0), make_record(1, policy_id="lora")],
        GateDecision(proceed=False, champion=1, reason="the best"),
    )
    return tracker.registry.name, made


def test_a_champion_is_measured_on_its_own_base_only(settings: Settings, champion: tuple[str, Path]) -> None:
    found = registered_champion(settings, "lora")
    assert found is not None
    assert (found.policy_id, found.iteration, found.base_model, found.revision) == ("lora", 1, "tiny", None)
    config = apply_overrides(PipelineConfig(preset="lora"), ["policy.model=other"])
    with pytest.raises(ConfigError, match=r"policy\.model=other: coppice-lora version 1 was trained on tiny; set that"):
        champion_policy(config, found)


def test_a_champion_that_no_run_registered_is_named(settings: Settings, logged: object, folder: Path) -> None:
    client: Any = open_registry(settings, "strange")._client
    client.create_registered_model("coppice-strange")
    version = client.create_model_version("coppice-strange", folder.as_uri()).version
    client.set_registered_model_alias("coppice-strange", "champion", version)
    with pytest.raises(TrackingError, match=r"registry: coppice-strange version 1, .*`coppice promote`"):
        registered_champion(settings, "strange")


def test_the_lines_that_load_the_champion_are_in_the_manual() -> None:
    manual = (Path(__file__).resolve().parents[1] / "mlflow" / "README.md").read_text(encoding="utf-8")
    assert all(line in manual for line in load_lines("coppice-tiny"))


def test_one_line_loads_the_champion_with_peft(
    settings: Settings, champion: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from mlflow.artifacts import download_artifacts
    from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    name, folder = champion
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(settings))
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"download_artifacts": download_artifacts, "PeftConfig": PeftConfig}
    scope |= {"AutoPeftModelForCausalLM": AutoPeftModelForCausalLM}
    exec("\n".join(load_lines(name)[:3]), scope)
    policy = scope["policy"]
    assert scope["base"] == str(model_path("tiny"))
    base = AutoModelForCausalLM.from_pretrained(model_path("tiny"))
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        alone = base(tokens).logits
        expected = PeftModel.from_pretrained(base, str(folder))(tokens).logits
        loaded = policy(tokens).logits
    assert torch.equal(loaded, expected)
    assert not torch.allclose(loaded, alone, atol=0.1)


@pytest.mark.vllm
def test_one_line_loads_the_champion_with_vllm(
    settings: Settings, champion: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = pytest.importorskip("vllm")
    import torch
    from mlflow.artifacts import download_artifacts
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from vllm.lora.request import LoRARequest

    name, _ = champion
    for variable, value in {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(settings))
    prompt = list(range(5, 25))
    llm = vllm.LLM(str(model_path("tiny")), enable_lora=True, dtype="float32", max_model_len=128, enforce_eager=True)
    greedy = vllm.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    [answer] = llm.generate(
        [{"prompt_token_ids": prompt}],
        greedy,
        lora_request=LoRARequest("champion", 1, download_artifacts(f"models:/{name}@champion")),
    )
    base = AutoModelForCausalLM.from_pretrained(model_path("tiny"))
    policy = PeftModel.from_pretrained(base, download_artifacts(f"models:/{name}@champion"))
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(8):
            tokens = torch.cat([tokens, policy(tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert list(answer.outputs[0].token_ids) == tokens[0, len(prompt) :].tolist()
