"""Models that come with Python code: refused before any of it runs, until the user allows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from policy_fixtures import make_requests, write_model

from deployments.preflight.findings import Findings
from deployments.preflight.model_checks import check_memory, check_model
from pipeline_lib.config import ConfigError, PipelineConfig, PolicyConfig, Settings, TrainConfig, apply_overrides
from pipeline_lib.policy import sample_all
from pipeline_lib.policy.end_tokens import declared_end_ids
from pipeline_lib.policy.tokenizers import load_codec
from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy
from pipeline_lib.training.open_policy import load_policy
from pipeline_lib.types import PolicyRef
from tasks.runtime.engines import code_spec, engine_spec

CONFIGURATION = """
from pathlib import Path
from transformers import Qwen2Config
Path({marker!r}).touch()
class OwnConfig(Qwen2Config):
    model_type = "own"
"""
MODELLING = """
from transformers import Qwen2ForCausalLM
from .configuration_own import OwnConfig
class OwnModel(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model under a name that transformers does not know; its code leaves a file behind when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = write_model(tmp_path / "own")
    layout = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({**layout, "model_type": "own", "auto_map": auto_map}))
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(marker=str(tmp_path / "ran")))
    (folder / "modeling_own.py").write_text(MODELLING)
    return folder


def config_for(folder: Path, *overrides: str) -> PipelineConfig:
    return apply_overrides(PipelineConfig(), [f"policy.model={folder}", "policy.max_context_tokens=200", *overrides])


def test_it_is_refused_in_one_line_and_none_of_it_runs(own: Path, tmp_path: Path) -> None:
    config = config_for(own)
    for refused in (
        lambda: load_codec(own, config.policy),
        lambda: check_model(config, Settings(), Findings()),
    ):
        with pytest.raises(ConfigError, match=r"Python code .* policy\.trust_remote_code=true") as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert declared_end_ids(own) == 1
    (own / "generation_config.json").unlink()
    assert declared_end_ids(own) == 1
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_with_code_of_its_own_is_refused_too(tmp_path: Path) -> None:
    folder = tmp_path
    named = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))  # known, and no tokenizer with it
    with pytest.raises(ConfigError, match=r"its tokenizer is made by Python code"):
        load_codec(folder, PolicyConfig(model=str(folder)))


def test_a_model_that_transformers_knows_is_not_asked_for_its_code(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    layout = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**layout, "auto_map": {"AutoConfig": "configuration_own.Own"}}))
    policy = PolicyConfig(model=str(folder), device="cpu")
    TransformersPolicy(folder, policy_id="test", config=policy, codec=load_codec(folder, policy)).close()


def test_allowed_it_is_sampled_and_trained_as_any_other(own: Path, tmp_path: Path) -> None:
    config = config_for(own, "policy.trust_remote_code=true", "policy.device=cpu")
    known = write_model(tmp_path / "known")
    answers = []
    for folder, policy in ((own, config.policy), (known, PolicyConfig(model=str(known), device="cpu"))):
        engine = TransformersPolicy(folder, policy_id="test", config=policy, codec=load_codec(folder, policy))
        found = sample_all(engine, make_requests(8, temperature=0.0))
        answers.append({name: result.token_ids.tolist() for name, result in found.items()})
        engine.close()
    assert answers[0] == answers[1]
    assert (tmp_path / "ran").exists()
    assert check_model(config, Settings(), Findings()).startswith("own, 2 layers")
    assert "GiB" in check_memory(config, Settings(), Findings())
    trained = load_policy(own, None, TrainConfig(lora_rank=2), config.policy, seed=0)
    assert type(trained.model).__name__ == "OwnModel" or "OwnModel" in str(trained.model)


def test_the_code_is_in_the_keys_where_it_runs(own: Path) -> None:
    policy = PolicyRef(policy_id="p", base_model=str(own), iteration=0)
    config, trusting = config_for(own), config_for(own, "policy.trust_remote_code=true")
    assert code_spec(config, policy) == {}
    before = engine_spec(trusting, policy, "tiny-word")
    assert before["code"] == code_spec(trusting, policy)["code"]
    assert "code" not in engine_spec(config, policy, "tiny-word")
    (own / "modeling_own.py").write_text(MODELLING + "# changed\n")
    assert engine_spec(trusting, policy, "tiny-word") != before
