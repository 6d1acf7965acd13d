"""Models of random weights with a real architecture, and what stands in for rewards that chance does not give them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline_lib.grading.grader import Grader
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.types import Grade, Outcome, SearchTree

LAYOUTS: Mapping[str, Mapping[str, int | bool]] = {
    "95M": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "0.5B": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def write_random_model(folder: Path, layout: str, *, dtype: torch.dtype, device: str) -> None:
    """A Qwen2 model of 151,936 tokens and the tokenizer of the tiny base, which knows the first few of them.

    Args:
        folder: is made.
        layout: key of `LAYOUTS`.
        dtype: of the saved weights.
        device: where they are drawn.
    """
    config = Qwen2Config(vocab_size=151_936, max_position_embeddings=4096, dtype=dtype, **LAYOUTS[layout])
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            Qwen2ForCausalLM(config).save_pretrained(folder)
        finally:
            torch.set_default_dtype(before)
    for file in TOKENIZER_FILES:
        shutil.copy(TINY_BASE / file, folder)


class NoGrader(Grader):
    """What a model of random weights writes has no answer."""

    def __init__(self) -> None:
        self._submitted: list[str] = []

    @property
    def num_in_flight(self) -> int:
        return len(self._submitted)

    def submit(self, key: str, prediction: str, gold: str) -> None:
        self._submitted.append(key)

    def poll(self, *, block: bool) -> list[tuple[str, Grade]]:
        graded = [(key, Grade.UNPARSED) for key in self._submitted]
        self._submitted.clear()
        return graded


def rewarded_in_turns(tree: SearchTree) -> SearchTree:
    """The tree with every other rollout called right: chance gives no reward here."""
    right = (np.arange(tree.num_nodes) % 2 == 1) & (tree.outcomes != Outcome.OPEN)
    sums = np.where(right, tree.visits, 0).astype(np.float64)
    for node in range(tree.num_nodes - 1, 0, -1):  # children stand behind their parents
        sums[tree.parents[node]] += sums[node]
    outcomes = np.where(right, np.int8(Outcome.CORRECT), tree.outcomes)
    return replace(tree, value_sums=sums, outcomes=outcomes)
