"""Takes the updates of a training run: plan, gradients, optimizer, checkpoint, stop on the KL alarm.

One idea: a run is its list of updates, drawn from (seed, epoch); a checkpoint says how many are done. That holds for
one process and for each of several, see `team`.

The learning rate rises linearly over ``warmup_updates`` and stays there: a run with more epochs is then a
continuation of one with fewer, and iterations compare (our choice).

Departures from arXiv 2501.01478, where it is silent:

1. The KL alarm: when the mean KL over the last `KL_WINDOW` updates passes ``kl_alarm``, training ends
   and keeps what it has.
2. ``rft`` has no KL in its loss; with ``kl_beta`` above 0 it is measured all the same, for the record and the alarm.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from pipeline_lib.config import TrainConfig
from pipeline_lib.policy.devices import resolve_device
from pipeline_lib.seeding import derive_generator
from pipeline_lib.training.batches.batching import PackedBatch, plan_updates
from pipeline_lib.training.batches.packing import PackedTree
from pipeline_lib.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline_lib.training.gradients import add_gradients
from pipeline_lib.training.open_policy import large_tensors_given_back, load_policy
from pipeline_lib.training.processes.job import Job
from pipeline_lib.training.processes.team import ALONE, Team
from pipeline_lib.training.result import UpdateMetrics, kl_alarm_rings
from pipeline_lib.training.trained_policy import TrainedPolicy

OnUpdate = Callable[[UpdateMetrics], None]
WHERE = {"num_processes", "shard_weights"}  # a checkpoint serves any number of processes


def take_updates(
    job: Job, trees: Sequence[PackedTree], on_update: OnUpdate | None, team: Team = ALONE
) -> list[UpdateMetrics]:
    """Trains, and writes the policy; returns one record per update, those before a kill included.

    Args:
        job: the run; its device is this process's own.
        trees: at least one.
        on_update: called with each update's metrics, after its checkpoint.
        team: every process of it calls this, with the same trees.

    Raises:
        ValueError, FloatingPointError: see `loop.train`.
    """
    device = resolve_device(job.policy.device)
    if device.type == "cpu":
        torch.set_num_threads(job.policy.num_threads)
    with large_tensors_given_back(device):
        trained = _open_policy(job, device, team)
        _check_window(trained, trees)
        history = _Trainer(trained, job, _fingerprint(trees, job.config, job.seed), team).run(trees, on_update)
    model = job.policy.model
    trained.save(job.output_dir, base_model=Path(model).name if Path(model).is_absolute() else model, write=team.writes)
    return history


def _open_policy(job: Job, device: torch.device, team: Team) -> TrainedPolicy:
    is_sharded = team.size > 1 and job.config.shard_weights
    policy = job.policy.model_copy(update={"device": "cpu"}) if is_sharded else job.policy  # may not fit a GPU whole
    trained = load_policy(job.model_dir, job.previous_adapter, job.config, policy, seed=job.seed)
    if is_sharded:
        trained.shard(init_device_mesh(device.type, (team.size,)))
    return trained


class _Trainer:
    """One run: the optimizer, its progress, and how they are saved."""

    def __init__(self, trained: TrainedPolicy, job: Job, fingerprint: str, team: Team) -> None:
        self.trained = trained
        self.config = job.config
        self.seed = job.seed
        self.checkpoint_dir = job.checkpoint_dir
        self.fingerprint = fingerprint
        self.team = team
        self.parameters = trained.trainable()
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        self.history = load_checkpoint(self.checkpoint_dir, fingerprint, self.parameters, self.optimizer)

    def run(self, trees: Sequence[PackedTree], on_update: OnUpdate | None) -> list[UpdateMetrics]:
        """Takes the updates that are not done yet; returns the whole history."""
        history = self.history
        for number, (epoch, batches) in enumerate(self._updates(trees)):
            if number < len(history):
                continue
            if kl_alarm_rings(history, self.config.kl_alarm):
                break
            history.append({"update": float(number), "epoch": float(epoch), **self._update(number, batches)})
            if len(history) % self.config.checkpoint_every == 0:
                self._save()
            if on_update is not None:
                on_update(history[-1])
        return history

    def _save(self) -> None:
        save_checkpoint(
            self.checkpoint_dir,
            self.history,
            self.fingerprint,
            self.parameters,
            self.optimizer,
            write=self.team.writes,
        )

    def _update(self, number: int, batches: Sequence[PackedBatch]) -> UpdateMetrics:
        learning_rate = self.config.learning_rate * min(1.0, (number + 1) / max(self.config.warmup_updates, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        metrics = add_gradients(self.trained, batches, self.config, self.team)
        total = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
        if not math.isfinite(norm):
            raise FloatingPointError(f"update {number}: the gradient is not finite; lower train.learning_rate")
        self.optimizer.step()
        return {**metrics, "grad_norm": norm, "learning_rate": learning_rate}

    def _updates(self, trees: Sequence[PackedTree]) -> Iterator[tuple[int, list[PackedBatch]]]:
        for epoch in range(self.config.num_epochs):
            order = derive_generator(self.seed, "epoch", epoch).permutation(len(trees))
            for batches in plan_updates(
                trees,
                order,
                tokens_per_update=self.config.tokens_per_update,
                tokens_per_microbatch=self.config.tokens_per_microbatch,
                break_even_tokens=6 * int(self.trained.model.config.hidden_size),  # see `batching`
                num_processes=self.team.size,
            ):
                yield epoch, batches


def _check_window(trained: TrainedPolicy, trees: Sequence[PackedTree]) -> None:
    window = trained.attention_window
    longest = max(int(tree.positions.max()) + 1 for tree in trees)
    if window is not None and longest > window:
        raise ValueError(
            f"a path of {longest} tokens is longer than the model's attention window of {window}; "
            "lower search.max_new_tokens"
        )


def _fingerprint(trees: Sequence[PackedTree], config: TrainConfig, seed: int) -> str:
    digest = hashlib.sha256(f"{config.model_dump_json(exclude=WHERE)} {seed}".encode())
    for tree in trees:
        for array in (tree.token_ids, tree.targets, tree.weights, tree.segments):
            digest.update(array.tobytes())
    return digest.hexdigest()
