"""Tree-packed training against one row per scored step: the same gradients, at what price."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks.measuring import Figure, clock_for, in_turns, speedup
from benchmarks.per_step_training import per_step_gradients, per_step_rows

from pipeline_lib.config import PipelineConfig
from pipeline_lib.score import score_tree
from pipeline_lib.seeding import derive_generator
from pipeline_lib.training.batching import PackedBatch, plan_updates
from pipeline_lib.training.examples import build_examples
from pipeline_lib.training.gradients import add_gradients
from pipeline_lib.training.loading import load_policy
from pipeline_lib.training.loop import pack_examples
from pipeline_lib.training.model import TrainedPolicy
from pipeline_lib.types import SearchTree, TrainingExample

TOLERANCE = 1e-5


def training_figures(
    trees: Sequence[SearchTree],
    config: PipelineConfig,
    *,
    model_dir: Path | str,
    eos_token_id: int,
    rounds: int = 3,
    num_compared: int = 12,
) -> list[Figure]:
    """The figures of the room ``train``.

    Args:
        trees: searched by the policy in `model_dir`.
        config: how to score and train them.
        model_dir: the base.
        eos_token_id: what ends an answer.
        rounds: turns of each side.
        num_compared: trees of the update that both sides compute.

    Raises:
        ArithmeticError: the two gradients differ by more than `TOLERANCE`, relative.
    """
    # Negative weights and the KL take part, so that the comparison covers the whole loss.
    train = config.train.model_copy(update={"objective": "relative-correctness"})
    examples = build_examples(trees, [score_tree(tree, config.score) for tree in trees], train)
    trained = load_policy(model_dir, None, train, config.policy, seed=config.seed)
    _leave_reference(trained)
    hidden_size = int(trained.model.config.hidden_size)

    def plan(chosen: Sequence[TrainingExample], tokens_per_update: int) -> list[list[PackedBatch]]:
        packed = pack_examples(chosen, train, eos_token_id=eos_token_id)
        return plan_updates(
            packed,
            derive_generator(config.seed, "benchmark").permutation(len(packed)),
            tokens_per_update=tokens_per_update,
            tokens_per_microbatch=train.tokens_per_microbatch,
            break_even_tokens=6 * hidden_size,
        )

    compared = examples[:num_compared]
    (batches,) = plan(compared, 10**9)
    rows = per_step_rows(compared, eos_token_id=eos_token_id)
    gradients: dict[str, torch.Tensor] = {}

    def packed(turn: int) -> float:
        add_gradients(trained, batches, train)
        gradients["packed"] = _take_gradients(trained)
        return float(len(rows))

    def per_step(turn: int) -> float:
        _, gradients["tokens"] = per_step_gradients(trained, rows, train)  # type: ignore[assignment]
        gradients["per_step"] = _take_gradients(trained)
        return float(len(rows))

    costs = in_turns({"packed": packed, "per_step": per_step}, rounds=rounds)
    error = relative_error(gradients["packed"], gradients["per_step"])
    if not error <= TOLERANCE:
        raise ArithmeticError(
            f"tree-packed and per-step gradients differ by {error:.1e}, relative; allowed {TOLERANCE}"
        )
    figure = speedup(
        "train.speedup_vs_per_step",
        costs["packed"],
        costs["per_step"],
        clock=clock_for(costs["per_step"]),
        target=4.0,
        labels=("packed_steps", "per_step_steps"),
    )
    num_tokens = sum(batch.num_tokens for batch in batches)
    details = {"gradient_error": error, "packed_tokens": num_tokens, "per_step_tokens": gradients["tokens"]}
    figure.details.update(details)  # type: ignore[attr-defined]
    return [figure, _tokens_vs_unique(plan(examples, train.tokens_per_update))]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """``|found - expected| / |expected|``, Euclidean norms."""
    return float((found - expected).norm() / expected.norm())


def _tokens_vs_unique(updates: Sequence[Sequence[PackedBatch]]) -> Figure:
    """Tokens computed in one epoch, padding and repeated prefixes included, over distinct ones."""
    batches = [batch for update in updates for batch in update]
    num_tokens, num_unique = (sum(getattr(b, name) for b in batches) for name in ("num_tokens", "num_unique_tokens"))
    details = {"tokens": num_tokens, "unique_tokens": num_unique, "updates": len(updates), "passes": len(batches)}
    return Figure("train.tokens_vs_unique", num_tokens / num_unique, 1.15, at_least=False, details=details)


def _leave_reference(trained: TrainedPolicy) -> None:
    """Moves the adapter to where the KL has a gradient; a new one equals its reference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.trainable().values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.02 * noise.to(parameter.device))


def _take_gradients(trained: TrainedPolicy) -> torch.Tensor:
    """All gradients as one vector; none are left behind."""
    parameters = list(trained.trainable().values())
    vector = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return vector
