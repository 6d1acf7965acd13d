"""A training run's state on disk: safetensors and JSON, whole or not there.

A checkpoint is written beside its final name and renamed, so a kill at any moment leaves the one before.
With weights, both moments of AdamW, the counters and the history in it, and every order drawn from
(seed, epoch), a resumed run takes exactly the updates that the uninterrupted one would.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline_lib.training.processes.sharding import part_like, whole_tensors
from pipeline_lib.training.result import UpdateMetrics

TENSORS = "state.safetensors"
COUNTERS = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save_checkpoint(
    folder: Path,
    history: Sequence[UpdateMetrics],
    fingerprint: str,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    write: bool = True,
) -> None:
    """Writes ``folder/update-000020`` in one move and removes the older ones.

    Where weights are spread over processes each of them must call this; the file is the same as that of one process.

    Args:
        folder: holds the checkpoints of one run alone.
        history: one record per update done.
        fingerprint: digest of everything that determines the run.
        parameters: what is trained, by name.
        optimizer: AdamW over `parameters`, in their order.
        write: False in processes that only contribute their part of the weights.
    """
    tensors: dict[str, torch.Tensor] = {f"weight/{name}": parameter for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for moment in MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    tensors = whole_tensors(tensors, keep=write)
    if not write:
        return
    final = folder / f"update-{len(history):06d}"
    draft = folder / f".{final.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(tensors, draft / TENSORS)
    counters = json.dumps({"fingerprint": fingerprint, "history": list(history)})
    (draft / COUNTERS).write_text(counters, encoding="utf-8")
    for path in draft.iterdir():
        _flush(path)
    os.replace(draft, final)
    for older in set(_checkpoints(folder)) - {final}:
        shutil.rmtree(older)


def load_checkpoint(
    folder: Path, fingerprint: str, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> list[UpdateMetrics]:
    """The history of the newest checkpoint, whose state is restored in place; [] where there is none.

    Raises:
        ValueError: the checkpoint belongs to another run.
    """
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return []
    newest = checkpoints[-1]
    counters = json.loads((newest / COUNTERS).read_text(encoding="utf-8"))
    if counters["fingerprint"] != fingerprint:
        raise ValueError(f"{newest} is from a run with other settings or data; remove {folder} to start afresh")
    history: list[UpdateMetrics] = counters["history"]
    tensors = load_file(newest / TENSORS)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(part_like(tensors[f"weight/{name}"], parameter))
    optimizer.load_state_dict(_optimizer_state(optimizer, parameters, tensors, len(history)))
    return history


def _optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    num_updates: int,
) -> dict[str, Any]:
    state = optimizer.state_dict()
    state["state"] = {
        index: {
            "step": torch.tensor(float(num_updates)),
            **{moment: part_like(tensors[f"{moment}/{name}"], parameter) for moment in MOMENTS},
        }
        for index, (name, parameter) in enumerate(parameters.items())
    }
    return state


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("update-*")) if folder.is_dir() else []


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
