"""Takes the updates of a training run: plan, gradients, optimizer, checkpoint, stop on the KL alarm.

One idea: a run is its list of updates, drawn from (seed, epoch); a checkpoint says how many are done. That holds for
one process and for each of several, see `team`.

The learning rate rises linearly over ``warmup_updates``, or over a tenth of all updates where that is less. It stays
there: a run with more epochs is a continuation of one with fewer, but for a short one's warm-up, and iterations compare
(our choice). Or it falls linearly, to nothing after the last update, as ``learning_rate_schedule`` says.

Departures from arXiv 2501.01478, where it is silent:

1. The KL alarm: when the mean KL over the last `KL_WINDOW` updates passes ``kl_alarm``, training ends
   and keeps what it has.
2. How far training moved the policy is measured in the end, on the first update's own tokens: a policy that has not
   moved would else look like a method that does not help.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from pipeline_lib.config import TrainConfig
from pipeline_lib.policy.devices import resolve_device
from pipeline_lib.seeding import derive_generator
from pipeline_lib.training.batches.batching import PackedBatch, plan_updates, split_evenly
from pipeline_lib.training.batches.packing import PackedTree
from pipeline_lib.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline_lib.training.gradients import add_gradients, log_probs_of, mean_change
from pipeline_lib.training.open_policy import large_tensors_given_back, load_policy
from pipeline_lib.training.processes.job import Job
from pipeline_lib.training.processes.team import ALONE, Team
from pipeline_lib.training.result import UpdateMetrics, kl_alarm_rings
from pipeline_lib.training.trained_policy import TrainedPolicy

OnUpdate = Callable[[UpdateMetrics], None]
UPDATES_PER_WARMUP = 10  # a warm-up of 5 made 3 updates teach a third of what they teach without, see LOG.md


def take_updates(
    job: Job, trees: Sequence[PackedTree], on_update: OnUpdate | None, team: Team = ALONE
) -> list[UpdateMetrics]:
    """Trains, and writes the policy; returns one record per update, those before a kill included.

    The last record has ``policy_change`` besides, see `TrainResult`.

    Args:
        job: what to train and how; its device is this process's own.
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
        trained = _load_policy(job, device, team)
        _, probe = next(_planned(trained, job, trees, team))
        before = log_probs_of(trained, probe, team)  # as training starts, also where it goes on from a checkpoint
        history = _optimise(trained, job, trees, on_update, team)
        history[-1]["policy_change"] = mean_change(before, log_probs_of(trained, probe, team), team)
    model = job.policy.model
    trained.save(job.output_dir, base_model=Path(model).name if Path(model).is_absolute() else model, write=team.writes)
    return history


def _load_policy(job: Job, device: torch.device, team: Team) -> TrainedPolicy:
    """The policy under training, its weights spread over the team where the configuration asks for it."""
    is_sharded = team.size > 1 and job.config.shard_weights
    policy = job.policy.model_copy(update={"device": "cpu"}) if is_sharded else job.policy  # may not fit a GPU whole
    trained = load_policy(job.model_dir, job.previous_adapter, job.config, policy, seed=job.seed)
    if is_sharded:
        trained.shard(init_device_mesh(device.type, (team.size,)))
    return trained


def _optimise(
    trained: TrainedPolicy, job: Job, trees: Sequence[PackedTree], on_update: OnUpdate | None, team: Team
) -> list[UpdateMetrics]:
    """Takes the updates that are not done yet; returns the whole history."""
    config, parameters = job.config, trained.trainable()
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    fingerprint = _fingerprint(job, trees)
    history = load_checkpoint(job.checkpoint_dir, fingerprint, parameters, optimizer)
    num_updates = _num_updates(job, trees)
    for number, (epoch, batches) in enumerate(_planned(trained, job, trees, team)):
        if number < len(history):
            continue
        if kl_alarm_rings(history, config.kl_alarm):
            break
        rate = learning_rate_at(number, num_updates, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        metrics = add_gradients(trained, batches, config, team)
        norm = _clip_gradients(parameters.values(), config.max_grad_norm)
        if not math.isfinite(norm):
            raise FloatingPointError(f"update {number}: the gradient is not finite; lower train.learning_rate")
        optimizer.step()
        done = {"update": float(number), "epoch": float(epoch)}
        history.append({**done, **metrics, "grad_norm": norm, "learning_rate": rate})
        if len(history) % config.checkpoint_every == 0:
            save_checkpoint(job.checkpoint_dir, history, fingerprint, parameters, optimizer, write=team.writes)
        if on_update is not None:
            on_update(history[-1])
    return history


def _planned(
    trained: TrainedPolicy, job: Job, trees: Sequence[PackedTree], team: Team
) -> Iterator[tuple[int, list[PackedBatch]]]:
    """Epoch and forward passes of every update, from the first one on."""
    for epoch, order in enumerate(_orders(job, trees)):
        for batches in plan_updates(
            trees,
            order,
            tokens_per_update=job.config.tokens_per_update,
            tokens_per_microbatch=job.config.tokens_per_microbatch,
            break_even_tokens=trained.break_even_tokens,
            num_processes=team.size,
        ):
            yield epoch, batches


def _orders(job: Job, trees: Sequence[PackedTree]) -> Iterator[NDArray[np.int64]]:
    """The order of the trees in each epoch."""
    for epoch in range(job.config.num_epochs):
        yield derive_generator(job.seed, "epoch", epoch).permutation(len(trees))


def _num_updates(job: Job, trees: Sequence[PackedTree]) -> int:
    """How many updates a training takes that no alarm ends."""
    limit = job.config.tokens_per_update
    return sum(len(split_evenly([trees[index] for index in order], limit)) for order in _orders(job, trees))


def learning_rate_at(number: int, num_updates: int, config: TrainConfig) -> float:
    """The learning rate of an update, counted from 0, of so many."""
    num_warmup = min(config.warmup_updates, max(1, num_updates // UPDATES_PER_WARMUP))
    share = min(1.0, (number + 1) / max(num_warmup, 1))
    if config.learning_rate_schedule == "linear":
        share = min(share, (num_updates - number) / max(num_updates - num_warmup, 1))
    return config.learning_rate * share


def _clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scales the gradients in place to a norm of at most `max_norm`; returns the norm that they had."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _fingerprint(job: Job, trees: Sequence[PackedTree]) -> str:
    """Digest of all that the updates depend on, and of nothing else: a checkpoint outlives a change of the rest."""
    config = job.config
    settings = config.model_dump(mode="json", exclude=config.without_effect()) | {"kl_beta": config.kl_weight}
    digest = hashlib.sha256(json.dumps([settings, job.policy.dtype, job.seed], sort_keys=True).encode())
    for tree in trees:
        for array in (tree.token_ids, tree.targets, tree.weights, tree.segments):
            digest.update(array.tobytes())
    return digest.hexdigest()
