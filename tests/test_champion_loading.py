"""The champion as others load it: its base is checked, and the lines of the manual work, with PEFT and with vLLM."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from record_fixtures import make_record

from pipeline_lib.config import ConfigError, PipelineConfig, Settings, apply_overrides
from pipeline_lib.policy.model_folders import model_path
from pipeline_lib.registry.model_note import load_lines
from pipeline_lib.tracking import IterationContents, Tracker, open_registry, registered_champion, tracking_uri
from pipeline_lib.tracking.outage import TrackingError
from pipeline_lib.types import GateDecision, PolicyRef
from tasks.champion import champion_policy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]
BASE = PolicyRef(policy_id="base", base_model="tiny", iteration=0)


@pytest.fixture(scope="module")
def settings(new_home: Callable[[], Path]) -> Settings:
    return Settings(home=new_home(), tracking_uri=None)


@pytest.fixture(scope="module")
def champion(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
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


def test_a_champion_that_no_run_registered_is_named(settings: Settings, tmp_path: Path) -> None:
    client: Any = open_registry(settings, "strange")._client
    client.create_registered_model("coppice-strange")
    version = client.create_model_version("coppice-strange", tmp_path.as_uri()).version
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
