"""Stages on a model with a large vocabulary, in a process of their own: what was estimated, and what it took.

Usage: ``python memory_probe.py search|train|evaluate… FOLDER cpu|cuda``; writes ``<stage>.json`` there. Of several
stages, only the first one's memory is its own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from benchmarks.random_model import NoGrader, rewarded_in_turns

from pipeline_lib.config import EvaluationConfig, PolicyConfig, ScoreConfig, SearchConfig, TrainConfig
from pipeline_lib.evaluation import evaluate
from pipeline_lib.grading import GradingPool, extract_answer
from pipeline_lib.policy.tokenizers import load_codec
from pipeline_lib.policy.transformers_engine.sampling_memory import sampling_memory
from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy
from pipeline_lib.score import score_tree
from pipeline_lib.search import read_trees_parquet, search_trees, write_trees_parquet
from pipeline_lib.training.batches.examples import build_examples
from pipeline_lib.training.loop import train
from pipeline_lib.training.training_memory import training_memory
from pipeline_lib.types import Problem, SearchTree

DEVICE = sys.argv[-1]
if DEVICE == "cpu":
    POLICY = PolicyConfig(max_batch=16, max_context_tokens=128, device="cpu")
    SEARCH = SearchConfig(
        num_simulations=16, num_candidates=16, max_new_tokens=100, parallel_simulations=16, step_delimiter=" "
    )
    TRAIN = TrainConfig(num_epochs=1, tokens_per_update=384, tokens_per_microbatch=384, checkpoint_every=100)
    NUM_PROBLEMS = 1
else:
    POLICY = PolicyConfig(max_batch=128, max_context_tokens=256, device="cuda", dtype="bfloat16")
    SEARCH = SearchConfig(
        num_simulations=16, num_candidates=16, max_new_tokens=240, parallel_simulations=16, step_delimiter=" "
    )
    TRAIN = TrainConfig(num_epochs=1, checkpoint_every=100)  # a tree of 16 rollouts nearly fills a row of 4,096 tokens
    NUM_PROBLEMS = 8
PROBLEMS = [Problem(f"p/{i}", f"What is {i} plus {i}?", str(2 * i), "tiny-word") for i in range(NUM_PROBLEMS)]


def memory() -> int:
    """Bytes held now: by this process, or on the GPU."""
    return _status("VmRSS") if DEVICE == "cpu" else torch.cuda.memory_allocated()


def peak_memory() -> int:
    """The most that `memory` has ever been."""
    return _status("VmHWM") if DEVICE == "cpu" else torch.cuda.max_memory_allocated()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def search(folder: Path) -> dict[str, object]:
    estimate = sampling_memory(folder / "model", POLICY)
    before = memory()
    codec = load_codec(folder / "model", POLICY)
    policy = TransformersPolicy(folder / "model", policy_id="large", config=POLICY, codec=codec)
    trees: list[SearchTree] = []
    search_trees(PROBLEMS, policy, NoGrader(), SEARCH, seed=0, on_tree=trees.append)
    write_trees_parquet([rewarded_in_turns(tree) for tree in trees], folder / "trees.parquet")
    return {"before": before, "peak": peak_memory(), "total": estimate.total, **asdict(estimate)}


def train_once(folder: Path) -> dict[str, object]:
    estimate = training_memory(folder / "model", TRAIN, POLICY)
    trees = read_trees_parquet(folder / "trees.parquet")
    examples = build_examples(trees, [score_tree(tree, ScoreConfig()) for tree in trees], TRAIN)
    before = memory()
    result = train(
        examples,
        model_dir=folder / "model",
        previous_adapter=None,
        output_dir=folder / "adapter",
        checkpoint_dir=folder / "checkpoint",
        config=TRAIN,
        policy=POLICY,
        seed=0,
    )
    spent = {"before": before, "peak": peak_memory(), "total": estimate.total, **asdict(estimate)}
    return {**spent, "updates": result.num_updates, "kl": result.history[0]["kl"]}


def evaluate_adapter(folder: Path) -> dict[str, object]:
    policy = TransformersPolicy(
        folder / "model",
        adapter_dir=folder / "adapter",
        policy_id="trained",
        config=POLICY,
        codec=load_codec(folder / "model", POLICY),
    )
    config = EvaluationConfig(num_problems=len(PROBLEMS), max_new_tokens=20)
    with GradingPool(1) as grader:
        report, predictions = evaluate(
            PROBLEMS, policy, grader, split="test", config=config, seed=0, extract=extract_answer
        )
    return {"num_problems": report.num_problems, "num_truncated": report.num_truncated, "answers": len(predictions)}


STAGES = {"search": search, "train": train_once, "evaluate": evaluate_adapter}

if __name__ == "__main__":
    *stages, folder = sys.argv[1:-1]
    for stage in stages:
        Path(folder, f"{stage}.json").write_text(json.dumps(STAGES[stage](Path(folder))), encoding="utf-8")
