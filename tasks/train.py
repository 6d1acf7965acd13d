"""Trains the next policy on an iteration's scored trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline_lib.config import PipelineConfig
from pipeline_lib.policy.model_folders import model_folder
from pipeline_lib.seeding import derive_seed
from pipeline_lib.store import PARTIAL, Entry, read_json, write_json
from pipeline_lib.training.batches.examples import build_examples, count_examples
from pipeline_lib.types import IterationRecord, PolicyRef, Ref, TrainingExample
from tasks.runtime.engines import code_spec, engines
from tasks.runtime.keys import key_of
from tasks.runtime.policies import policy_folder
from tasks.runtime.progress import Progress
from tasks.runtime.stage import Done, open_store, stage, stage_refs
from tasks.score import load_scores
from tasks.search import load_trees

HISTORY = "history.json"
Replayed = tuple[tuple[Ref, ...], ...]  # for each iteration its scores, then its trees


def _spec(
    *,
    config: PipelineConfig,
    trees: tuple[Ref, ...],
    scores: Ref,
    policy: PolicyRef,
    iteration: int,
    replayed: Replayed = (),
) -> dict[str, Any]:
    train = key_of(config.train, without={*config.train.without_effect(), "replay_iterations"})
    return {
        "train": train | {"kl_beta": config.train.kl_weight},
        "dtype": config.policy.dtype,
        **code_spec(config, policy),
        "policy_id": policy.policy_id,
        "seed": config.seed,
        "iteration": iteration,
    }


@stage(_spec, version=2, run_name="train {iteration}")
def train_policy(
    entry: Entry,
    *,
    config: PipelineConfig,
    trees: tuple[Ref, ...],
    scores: Ref,
    policy: PolicyRef,
    iteration: int,
    replayed: Replayed = (),
) -> Done:
    """Trains from `policy`, which is also the KL's reference; a killed training goes on from its last checkpoint.

    Args:
        entry: filled with ``policy/``, an adapter or full weights, and ``history.json``, a row per update.
        config: objective, optimizer, device and seed.
        trees: of the iteration.
        scores: of these trees.
        policy: what searched.
        iteration: part of the seed.
        replayed: what `replayed_from` found; trained on as if it were of this iteration.
    """
    from pipeline_lib.policy.tokenizers import load_tokenizer
    from pipeline_lib.training.loop import train

    engines.free_for_training()
    searched, scored = load_trees(trees), load_scores(scores)
    for scores_then, *trees_then in replayed:
        searched += load_trees(trees_then)
        scored += load_scores(scores_then)
    examples = build_examples(searched, scored, config.train)
    model_dir = model_folder(policy.base_model, policy.revision)
    progress = _TokenProgress(iteration, examples, config.train.num_epochs)
    result = train(
        examples,
        model_dir=model_dir,
        previous_adapter=policy_folder(policy),
        output_dir=entry.path / "policy",
        checkpoint_dir=entry.path / PARTIAL / "checkpoint",
        config=config.train,
        policy=config.policy,
        seed=derive_seed(config.seed, "train", iteration),
        on_update=progress.on_update,
    )
    progress.end()
    if config.train.full_finetuning:
        load_tokenizer(model_dir, config.policy).save_pretrained(entry.path / "policy")
    write_json(entry.path / HISTORY, list(result.history))
    metrics = {**result.metrics(), **count_examples(searched, examples), "train/kl_beta": config.train.kl_weight}
    return Done(result.num_updates, figures={name.removeprefix("train/"): value for name, value in metrics.items()})


def replayed_from(config: PipelineConfig, records: Sequence[IterationRecord]) -> Replayed:
    """Scores and trees of the last ``train.replay_iterations`` iterations that have any, oldest first."""
    searched = [record for record in records if "score" in record.refs]
    last = searched[max(0, len(searched) - config.train.replay_iterations) :]
    return tuple((record.refs["score"], *stage_refs(record, "search")) for record in last)


class _TokenProgress:
    """A training's progress in scored tokens, those of context left out: packing changes how many of these there are.

    What ends an answer is counted too while it goes on, so it is nearly right.

    Args:
        iteration: which one is trained.
        examples: what is trained on.
        num_epochs: how often.
    """

    def __init__(self, iteration: int, examples: Sequence[TrainingExample], num_epochs: int) -> None:
        tokens = sum(
            len(example.tree.token_ids[step])
            for example in examples
            for step in (*np.flatnonzero(example.weights), *np.ravel(example.pairs))
        )
        self._progress = Progress(f"train {iteration}", max(1, num_epochs * tokens))
        self._trained, self._scored, self._num_updates = 0.0, 0.0, 0
        self._progress.count_tokens(lambda: self._trained)

    def on_update(self, update: Mapping[str, float]) -> None:
        """Counts an update; those before a kill are not told, and taken for as large as the others."""
        self._trained += update["num_tokens"]
        self._scored += update["num_scored_tokens"]
        self._num_updates += 1
        done = self._scored / self._num_updates * (update["update"] + 1)
        self._progress.reach(min(round(done), self._progress.total - 1))

    def end(self) -> None:
        """Says that all is done, also where an alarm ended it early."""
        self._progress.reach(self._progress.total)


def check_training(config: PipelineConfig) -> None:
    """Raises ConfigError where this machine or model lacks what training takes, before a search is paid for."""
    if config.policy.device.startswith("cuda"):
        from pipeline_lib.policy.devices import resolve_device

        resolve_device(config.policy.device)
    if config.train.num_processes > 1 or config.train.shard_weights:
        from pipeline_lib.training.processes.launch import check_processes

        check_processes(config.train, config.policy)
    if config.train.lora_targets == "attention" and not config.train.full_finetuning:
        from pipeline_lib.policy.model_folders import model_folder
        from pipeline_lib.training.training_memory import check_layers

        folder = model_folder(config.policy.model, config.policy.revision, weights=False)
        check_layers(folder, config.train, config.policy)


def load_history(ref: Ref) -> list[dict[str, float]]:
    """One row of metrics per update."""
    history: list[dict[str, float]] = read_json(open_store().open(ref) / HISTORY)
    return history
