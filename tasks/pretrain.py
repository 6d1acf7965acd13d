"""Stages of building a tiny base."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task

from pipeline_lib.config import EvaluationConfig, PolicyConfig
from pipeline_lib.evaluation import evaluate
from pipeline_lib.grading import GradingPool, extract_answer
from pipeline_lib.policy.model_folders import fingerprint
from pipeline_lib.problems.tiny import make_problem
from pipeline_lib.problems.tiny.corpus import pretraining_corpus
from pipeline_lib.store import PARTIAL, Entry
from pipeline_lib.training.tiny_base.base_card import write_card
from pipeline_lib.training.tiny_base.pretraining import PretrainingPlan, pretrain
from pipeline_lib.types import Ref
from tasks.runtime.progress import Progress
from tasks.runtime.stage import Done, open_store, seconds_of, stage

NUM_MEASURED = 500


def _plan(scale: int, seed: int) -> PretrainingPlan:
    return PretrainingPlan(seed=seed, scale=scale)


def _spec(*, scale: int, seed: int, num_threads: int) -> dict[str, Any]:
    return {**asdict(_plan(scale, seed)), "num_threads": num_threads}


@stage(_spec, run_name="pretrain scale {scale}")
def pretrain_base(entry: Entry, *, scale: int, seed: int, num_threads: int) -> Done:
    """Trains tokenizer and model; goes on from the last checkpoint after a kill."""
    import torch

    torch.set_num_threads(num_threads)
    plan = _plan(scale, seed)
    progress = Progress("pretrain", plan.num_updates)
    pretrain(
        lambda start: pretraining_corpus(seed, scale=scale, start=start),
        plan,
        entry.path / "model",
        entry.path / PARTIAL / "checkpoint",
        device="cuda" if torch.cuda.is_available() else "cpu",
        on_update=lambda update, _loss: progress.reach(update),
    )
    return Done(plan.num_updates)


@task(name="measure-base")
def measure_base(*, base: Ref, scale: int, num_threads: int) -> dict[str, float]:
    """Greedy accuracy on both families' validation splits, by dataset."""
    from pipeline_lib.policy.tokenizers import load_codec
    from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy

    folder = open_store().open(base) / "model"
    config = PolicyConfig(num_threads=num_threads)
    policy = TransformersPolicy(folder, policy_id=fingerprint(folder), config=config, codec=load_codec(folder, config))
    suffix = f"@{scale}" if scale > 1 else ""
    accuracies = {}
    for dataset in (f"tiny-word{suffix}", f"tiny-algebra{suffix}"):
        problems = [make_problem(dataset, "validation", i) for i in range(NUM_MEASURED)]
        with GradingPool() as grader:
            report, _ = evaluate(
                problems, policy, grader, split="validation", config=EvaluationConfig(), seed=0, extract=extract_answer
            )
        accuracies[dataset] = report.accuracy
    return accuracies


@task(name="install-base")
def install_base(*, base: Ref, output_dir: Path, accuracies: dict[str, float], scale: int, seed: int) -> None:
    """Copies the model folder to `output_dir` and writes its card."""
    folder = open_store().open(base) / "model"
    shutil.copytree(folder, output_dir, dirs_exist_ok=True)
    plan = _plan(scale, seed)
    write_card(output_dir / "README.md", plan, accuracies, seconds=seconds_of(base), num_measured=NUM_MEASURED)
