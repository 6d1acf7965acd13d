"""What one training run is given, and how it travels to the processes that share it.

Packed trees are arrays and the rest is settings, so safetensors and JSON hold a job whole, and nothing that
another process reads can run code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from pipeline_lib.config import PolicyConfig, TrainConfig
from pipeline_lib.training.batches.packing import PackedTree

TREES = "trees.safetensors"
SETTINGS = "job.json"
PER_TOKEN = ("token_ids", "positions", "subtree_ends")
PER_SCORED_TOKEN = ("sources", "targets", "weights", "segments")
PER_TREE = ("num_pairs", "num_unique_tokens")


@dataclass(frozen=True, slots=True)
class Job:
    """One training run, but for its packed trees.

    Args:
        model_dir: base model folder or hub name.
        previous_adapter: where training starts and what the KL is against; None takes the base for both.
        output_dir: becomes a PEFT adapter, or a model folder with full fine-tuning.
        checkpoint_dir: holds the checkpoints of this run alone.
        config: objective, optimizer, limits.
        policy: device, dtype and threads.
        seed: draws the order of examples and the adapter's first weights.
    """

    model_dir: Path | str
    previous_adapter: Path | None
    output_dir: Path
    checkpoint_dir: Path
    config: TrainConfig
    policy: PolicyConfig
    seed: int


def write_job(folder: Path, job: Job, trees: Sequence[PackedTree]) -> None:
    """Writes both into an existing folder; `trees` has at least one."""
    arrays = {name: np.concatenate([getattr(tree, name) for tree in trees]) for name in (*PER_TOKEN, *PER_SCORED_TOKEN)}
    for name in ("num_tokens", "num_scored_tokens", *PER_TREE):
        arrays[name] = np.array([getattr(tree, name) for tree in trees], dtype=np.int64)
    save_file(arrays, folder / TREES)
    settings = {
        "model_dir": str(job.model_dir),
        "previous_adapter": None if job.previous_adapter is None else str(job.previous_adapter),
        "output_dir": str(job.output_dir),
        "checkpoint_dir": str(job.checkpoint_dir),
        "config": job.config.model_dump(mode="json"),
        "policy": job.policy.model_dump(mode="json"),
        "seed": job.seed,
    }
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")


def read_job(folder: Path) -> tuple[Job, list[PackedTree]]:
    """What `write_job` wrote."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    previous = settings["previous_adapter"]
    job = Job(
        model_dir=settings["model_dir"],
        previous_adapter=None if previous is None else Path(previous),
        output_dir=Path(settings["output_dir"]),
        checkpoint_dir=Path(settings["checkpoint_dir"]),
        config=TrainConfig.model_validate(settings["config"]),
        policy=PolicyConfig.model_validate(settings["policy"]),
        seed=settings["seed"],
    )
    arrays = load_file(folder / TREES)
    columns: dict[str, Sequence[Any]] = {name: arrays[name].tolist() for name in PER_TREE}
    for names, lengths in ((PER_TOKEN, arrays["num_tokens"]), (PER_SCORED_TOKEN, arrays["num_scored_tokens"])):
        columns |= {name: np.split(arrays[name], np.cumsum(lengths)[:-1]) for name in names}
    rows = zip(*columns.values(), strict=True)
    return job, [PackedTree(**dict(zip(columns, row, strict=True))) for row in rows]
