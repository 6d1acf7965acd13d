"""A random model and synthetic trees, small enough to train in a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pipeline_lib.config import PolicyConfig, TrainConfig
from pipeline_lib.training.batches.examples import TrainingExample, build_examples
from pipeline_lib.training.loop import train
from pipeline_lib.training.result import TrainResult
from pipeline_lib.types import Outcome, SearchTree

EOS = 1
VOCABULARY = 64
CPU = PolicyConfig(device="cpu", model="random")
CONFIG = TrainConfig(lora_rank=4, tokens_per_update=512, tokens_per_microbatch=512, num_epochs=1, negative_clip=0.5)


def save_model(folder: Path, *, kind: str = "qwen2", hidden: int = 32, layers: int = 2, seed: int = 0) -> Path:
    """A randomly initialised causal language model with 2 key-value heads for 4 query heads."""
    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[kind]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.2,  # large, so that prefixes matter to the logits
        eos_token_id=EOS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model_class(config).save_pretrained(folder)
    return folder


def make_tree(
    parents: list[int],
    token_ids: list[list[int]],
    *,
    prompt: tuple[int, ...] = (2, 3),
    outcomes: dict[int, Outcome] | None = None,
    visits: list[int] | None = None,
    value_sums: list[float] | None = None,
    problem_id: str = "tiny-word/train/00000",
) -> SearchTree:
    """A tree from its parents and tokens; every other field has a default."""
    num_nodes = len(parents)
    depths = np.zeros(num_nodes, dtype=np.int32)
    for node in range(1, num_nodes):
        depths[node] = depths[parents[node]] + 1
    codes = np.zeros(num_nodes, dtype=np.int8)
    for node, outcome in (outcomes or {}).items():
        codes[node] = outcome
    return SearchTree(
        problem_id=problem_id,
        policy_id="policy",
        seed=0,
        prompt_token_ids=np.array(prompt, dtype=np.int32),
        parents=np.array(parents, dtype=np.int32),
        steps=tuple("" for _ in parents),
        token_ids=tuple(np.array(ids, dtype=np.int32) for ids in token_ids),
        visits=np.array(visits or [1] * num_nodes, dtype=np.int32),
        value_sums=np.array(value_sums or [0.0] * num_nodes),
        outcomes=codes,
        depths=depths,
    )


def random_tree(seed: int, *, num_rollouts: int = 12, depth: int = 4, step_tokens: int = 10) -> SearchTree:
    """A tree as a search leaves it: rollouts of 2 to `depth` steps that share prefixes and end right or wrong."""
    rng = np.random.default_rng(seed)
    parents, tokens, visits, value_sums, outcomes = [-1], [[]], [0], [0.0], {}
    children: dict[tuple[int, int], int] = {}
    for _ in range(num_rollouts):
        node, path, choices = 0, [0], []
        length = int(rng.integers(2, depth + 1))
        for level in range(length):
            choice = int(rng.integers(0, 2 + (level > 0) * 2)) + (100 if level == length - 1 else 0)
            choices.append(choice % 100)
            if (node, choice) not in children:
                children[node, choice] = len(parents)
                parents.append(node)
                size = int(rng.integers(step_tokens // 2, 2 * step_tokens))
                tokens.append([int(t) for t in rng.integers(2, VOCABULARY, size)])
                visits.append(0)
                value_sums.append(0.0)
            node = children[node, choice]
            path.append(node)
        is_right = sum(choices) % 2 == 0
        outcomes[node] = Outcome.CORRECT if is_right else Outcome.WRONG
        for visited in path:
            visits[visited] += 1
            value_sums[visited] += is_right
    prompt = tuple(int(t) for t in rng.integers(2, VOCABULARY, int(rng.integers(20, 40))))
    return make_tree(
        parents,
        tokens,
        prompt=prompt,
        outcomes=outcomes,
        visits=visits,
        value_sums=value_sums,
        problem_id=f"tiny-word/train/{seed:05d}",
    )


def group_scores(tree: SearchTree) -> np.ndarray:
    """`[N]` value minus the sibling group's mean, times visits: a stand-in for the score room."""
    scores = np.zeros(tree.num_nodes)
    for group in tree.sibling_groups().values():
        mean = tree.value_sums[group].sum() / tree.visits[group].sum()
        scores[group] = tree.visits[group] * (tree.values[group] - mean)
    return scores


def with_(**changes: object) -> TrainConfig:
    """The settings of a small training, some of them changed."""
    return CONFIG.model_copy(update=changes)


def examples_for(config: TrainConfig, count: int = 4) -> list[TrainingExample]:
    """What some random trees teach."""
    trees = [random_tree(seed) for seed in range(count)]
    return build_examples(trees, [group_scores(tree) for tree in trees], config)


def run(
    model_dir: Path,
    folder: Path,
    *,
    config: TrainConfig = CONFIG,
    previous: Path | None = None,
    seed: int = 0,
    count: int = 4,
    on_update: Callable[[dict[str, float]], None] | None = None,
) -> TrainResult:
    """What training on random trees comes to; its files lie in ``out`` and ``checkpoints`` of the folder."""
    return train(
        examples_for(config, count),
        model_dir=model_dir,
        previous_adapter=previous,
        output_dir=folder / "out",
        checkpoint_dir=folder / "checkpoints",
        config=config,
        policy=CPU,
        seed=seed,
        eos_token_id=EOS,
        on_update=on_update,
    )
