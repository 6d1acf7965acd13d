"""One training loop for every objective: pack, plan, update, checkpoint, stop on the KL alarm.

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
from transformers import AutoTokenizer

from pipeline_lib.config import PolicyConfig, TrainConfig
from pipeline_lib.seeding import derive_generator
from pipeline_lib.training.batching import PackedBatch, plan_updates
from pipeline_lib.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline_lib.training.gradients import add_gradients
from pipeline_lib.training.loading import give_back_freed_memory, load_policy, resolve_device
from pipeline_lib.training.model import TrainedPolicy
from pipeline_lib.training.packing import PackedTree, pack_example
from pipeline_lib.training.result import TrainResult, UpdateMetrics, kl_alarm_rings, summarise
from pipeline_lib.types import TrainingExample

OnUpdate = Callable[[UpdateMetrics], None]


def train(
    examples: Sequence[TrainingExample],
    *,
    model_dir: Path | str,
    previous_adapter: Path | None,
    output_dir: Path,
    checkpoint_dir: Path,
    config: TrainConfig,
    policy: PolicyConfig,
    seed: int,
    eos_token_id: int | None = None,
    on_update: OnUpdate | None = None,
) -> TrainResult:
    """Trains the next policy on the examples and writes it to `output_dir`.

    Killed and called again with the same arguments it goes on from the last checkpoint, and on the same machine writes
    the same bytes as an uninterrupted run.

    Args:
        examples: see `build_examples`; at least one.
        model_dir: base model folder or hub name.
        previous_adapter: the previous iteration's output, where training starts and what the KL is
            against; None takes the base for both.
        output_dir: a PEFT adapter, or a model folder with full fine-tuning.
        checkpoint_dir: of this run alone.
        config: objective, optimizer, limits.
        policy: device, dtype and threads.
        seed: of the order of examples and the adapter's first weights.
        eos_token_id: what ends an answer; None asks the tokenizer in `model_dir`.
        on_update: called with each update's metrics, after its checkpoint.

    Raises:
        ValueError: nothing to train on, a previous adapter or checkpoint that does not fit, or a model
            that cannot be trained on packed trees.
        FloatingPointError: a gradient is not finite.
    """
    if resolve_device(policy.device).type == "cpu":
        torch.set_num_threads(policy.num_threads)
        give_back_freed_memory()
    eos = _eos_token_id(model_dir, policy) if eos_token_id is None else eos_token_id
    trees = pack_examples(examples, config, eos_token_id=eos)
    trained = load_policy(model_dir, previous_adapter, config, policy, seed=seed)
    _check_window(trained, trees)
    fingerprint = _fingerprint(trees, config, seed)
    trainer = _Trainer(trained, config, checkpoint_dir, fingerprint)
    history = trainer.run(trees, seed, on_update)
    trained.save(output_dir, base_model=Path(policy.model).name if Path(policy.model).is_absolute() else policy.model)
    return summarise(history, kl_alarm=config.kl_alarm)


def pack_examples(examples: Sequence[TrainingExample], config: TrainConfig, *, eos_token_id: int) -> list[PackedTree]:
    """All packed trees with something to score.

    Raises:
        ValueError: there is none.
    """
    max_tokens = min(config.tokens_per_microbatch, config.tokens_per_update)
    trees = [
        tree
        for example in examples
        for tree in pack_example(example, eos_token_id=eos_token_id, max_tokens=max_tokens)
        if tree.num_scored_tokens
    ]
    if not trees:
        raise ValueError("no step to train on: every weight is 0; search more simulations or raise train.negative_clip")
    return trees


class _Trainer:
    """One run: the optimizer, its progress, and how they are saved."""

    def __init__(self, trained: TrainedPolicy, config: TrainConfig, checkpoint_dir: Path, fingerprint: str) -> None:
        self.trained = trained
        self.config = config
        self.checkpoint_dir = checkpoint_dir
        self.fingerprint = fingerprint
        self.parameters = trained.trainable()
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.history = load_checkpoint(checkpoint_dir, fingerprint, self.parameters, self.optimizer)

    def run(self, trees: Sequence[PackedTree], seed: int, on_update: OnUpdate | None) -> list[UpdateMetrics]:
        """Takes the updates that are not done yet; returns the whole history."""
        history = self.history
        break_even_tokens = 6 * int(self.trained.model.config.hidden_size)  # see `batching`
        for number, (epoch, batches) in enumerate(_updates(trees, self.config, seed, break_even_tokens)):
            if number < len(history):
                continue
            if kl_alarm_rings(history, self.config.kl_alarm):
                break
            history.append({"update": float(number), "epoch": float(epoch), **self._update(number, batches)})
            if len(history) % self.config.checkpoint_every == 0:
                save_checkpoint(self.checkpoint_dir, history, self.fingerprint, self.parameters, self.optimizer)
            if on_update is not None:
                on_update(history[-1])
        return history

    def _update(self, number: int, batches: Sequence[PackedBatch]) -> UpdateMetrics:
        learning_rate = self.config.learning_rate * min(1.0, (number + 1) / max(self.config.warmup_updates, 1))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        metrics = add_gradients(self.trained, batches, self.config)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(f"update {number}: the gradient is not finite; lower train.learning_rate")
        self.optimizer.step()
        return {**metrics, "grad_norm": norm, "learning_rate": learning_rate}


def _updates(
    trees: Sequence[PackedTree], config: TrainConfig, seed: int, break_even_tokens: int
) -> Iterator[tuple[int, list[PackedBatch]]]:
    for epoch in range(config.num_epochs):
        order = derive_generator(seed, "epoch", epoch).permutation(len(trees))
        for batches in plan_updates(
            trees,
            order,
            tokens_per_update=config.tokens_per_update,
            tokens_per_microbatch=config.tokens_per_microbatch,
            break_even_tokens=break_even_tokens,
        ):
            yield epoch, batches


def _eos_token_id(model_dir: Path | str, policy: PolicyConfig) -> int:
    revision = None if Path(model_dir).is_dir() else policy.revision
    token_id = AutoTokenizer.from_pretrained(model_dir, revision=revision).eos_token_id
    if token_id is None:
        raise ValueError(
            f"the tokenizer in {model_dir} has no end-of-sequence token; set eos_token in its configuration"
        )
    return int(token_id)


def _check_window(trained: TrainedPolicy, trees: Sequence[PackedTree]) -> None:
    window = trained.attention_window
    longest = max(int(tree.positions.max()) + 1 for tree in trees)
    if window is not None and longest > window:
        raise ValueError(
            f"a path of {longest} tokens is longer than the model's attention window of {window}; "
            "lower search.max_new_tokens"
        )


def _fingerprint(trees: Sequence[PackedTree], config: TrainConfig, seed: int) -> str:
    digest = hashlib.sha256(f"{config.model_dump_json()} {seed}".encode())
    for tree in trees:
        for array in (tree.token_ids, tree.targets, tree.weights, tree.segments):
            digest.update(array.tobytes())
    return digest.hexdigest()
