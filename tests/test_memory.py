"""A model of 95 million weights, 24 layers and 151,936 tokens, made from a configuration, through every stage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from deployments.presets import preset
from pipeline_lib.config import apply_overrides
from pipeline_lib.policy.models import TINY_BASE
from pipeline_lib.training.memory import training_memory

PROBE = Path(__file__).with_name("memory_probe.py")
LAYOUT = {
    "vocab_size": 151_936,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 6,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the model, with the tokenizer of the tiny base; stages add what they make."""
    folder = tmp_path_factory.mktemp("large")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2ForCausalLM(Qwen2Config(**LAYOUT)).save_pretrained(folder / "model")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(TINY_BASE / file, folder / "model")
    return folder


def run(stage: str, folder: Path) -> dict[str, Any]:
    subprocess.run([sys.executable, str(PROBE), stage, str(folder)], check=True)
    done: dict[str, Any] = json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))
    return done


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, dict[str, Any]]:
    """What search and one training said of themselves."""
    return {stage: run(stage, folder) for stage in ("search", "train")}


def is_as_estimated(done: dict[str, Any]) -> bool:
    return bool(done["peak"] == pytest.approx(done["before"] + done["total"], rel=0.15))


@pytest.mark.slow
def test_a_large_vocabulary_goes_through_every_stage(folder: Path, trained: dict[str, dict[str, Any]]) -> None:
    assert trained["train"]["updates"] >= 1
    assert trained["train"]["kl"] == pytest.approx(0, abs=1e-5)  # the first update starts from its reference
    assert run("evaluate", folder) == {"num_problems": 1, "num_truncated": 1, "answers": 1}


@pytest.mark.slow
def test_search_takes_the_estimated_memory(trained: dict[str, dict[str, Any]]) -> None:
    assert is_as_estimated(trained["search"]), trained["search"]


@pytest.mark.slow
def test_training_takes_the_estimated_memory(trained: dict[str, dict[str, Any]]) -> None:
    assert is_as_estimated(trained["train"]), trained["train"]


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
