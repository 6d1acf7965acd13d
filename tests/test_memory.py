"""A model with 24 layers and 151,936 tokens, made from a configuration, through every stage, on a CPU and on CUDA."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.random_model import write_random_model

from deployments.presets import preset
from pipeline_lib.config import apply_overrides
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.training.training_memory import training_memory

PROBE = Path(__file__).with_name("memory_probe.py")
LAYOUT = {"cpu": "95M", "cuda": "0.5B"}
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])])
def device(request: pytest.FixtureRequest) -> str:
    """Where the stages compute: in float32 on a CPU, in bfloat16 on CUDA."""
    return str(request.param)


@pytest.fixture(scope="module")
def folder(device: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the model, with the tokenizer of the tiny base; stages add what they make."""
    folder = tmp_path_factory.mktemp("large")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    write_random_model(folder / "model", LAYOUT[device], dtype=dtype, device=device)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path, device: str) -> dict[str, dict[str, Any]]:
    """What each stage said of itself."""
    for stages in (["search"], ["train", "evaluate"]):
        subprocess.run([sys.executable, str(PROBE), *stages, str(folder), device], check=True)
    return {stage: json.loads((folder / f"{stage}.json").read_bytes()) for stage in ("search", "train", "evaluate")}


@pytest.mark.slow
def test_a_large_vocabulary_goes_through_every_stage(done: dict[str, dict[str, Any]]) -> None:
    trained, evaluated = done["train"], done["evaluate"]
    assert trained["updates"] >= 1
    assert trained["kl"] == pytest.approx(0, abs=1e-5)  # the first update starts from its reference
    assert evaluated["num_problems"] == evaluated["num_truncated"] == evaluated["answers"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["search", "train"])
def test_a_stage_takes_the_estimated_memory(done: dict[str, dict[str, Any]], stage: str) -> None:
    spent = done[stage]
    assert spent["peak"] == pytest.approx(spent["before"] + spent["total"], rel=0.15), spent


@pytest.mark.slow
def test_the_estimate_follows_what_is_trained_and_kept() -> None:
    def estimate(*overrides: str) -> Any:
        config = apply_overrides(preset("tiny"), list(overrides))
        return training_memory(TINY_BASE, config.train, config.policy)

    lora, full = estimate(), estimate("train.full_finetuning=true")
    assert lora.num_trained == 155_648
    assert (full.num_trained, full.trained) == (854_144, 4 * 4 * 854_144)
    assert full.weights == lora.weights == 4 * 854_144  # the frozen reference takes what the frozen base took
    twice = estimate("train.tokens_per_microbatch=2048")
    assert 1.9 < (twice.activations + twice.logits) / (lora.activations + lora.logits) < 2.3
    checkpointed = estimate("train.gradient_checkpointing=true")
    assert checkpointed.activations < lora.activations / 2.5
    assert checkpointed.weights == lora.weights
