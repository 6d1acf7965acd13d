"""Tree-packed training against one sample per scored step: the same gradients, at what price.

Per-step samples are computed in two ways: `ROWS_PER_PASS` of them padded into one forward pass, as a trainer
would, and one alone. Both are reported; the first is the harder to beat and carries the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from benchmarks.measuring import Figure, clock_for, in_turns, speedup
from benchmarks.per_step_training import per_step_gradients, per_step_rows

from pipeline_lib.config import PipelineConfig, TrainConfig
from pipeline_lib.score import score_tree
from pipeline_lib.seeding import derive_generator
from pipeline_lib.training.batches.batching import PackedBatch, plan_updates
from pipeline_lib.training.batches.examples import build_examples
from pipeline_lib.training.gradients import add_gradients
from pipeline_lib.training.loop import pack_examples
from pipeline_lib.training.open_policy import load_policy
from pipeline_lib.training.trained_policy import TrainedPolicy
from pipeline_lib.types import Outcome, SearchTree, TrainingExample

TOLERANCE = 1e-5
NUM_NODES, STEP_TOKENS = 31, 10
ROWS_PER_PASS = 16  # about as many tokens as a packed pass of the tiny preset


def training_figures(
    trees: Sequence[SearchTree],
    config: PipelineConfig,
    *,
    model_dir: Path | str,
    eos_token_id: int,
    rounds: int = 3,
    num_compared: int = 48,
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
    comparison = PackedComparison(trees, config, model_dir=model_dir, eos_token_id=eos_token_id, rounds=rounds)
    examples = comparison.examples
    bushy = [_bushy_example(seed, len(examples[0].tree.prompt_token_ids)) for seed in range(num_compared // 3)]
    return [
        *comparison.figures("train.speedup_vs_per_step", bushy, 4.0),
        *comparison.figures("train.speedup_vs_per_step_tiny", examples[:num_compared], None),
        _tokens_vs_unique(comparison.plan(examples, config.train.tokens_per_update)),
    ]


class PackedComparison:
    """Packed and per-step training of examples of some trees by one policy.

    Args:
        trees, config, model_dir, eos_token_id, rounds: see `training_figures`.

    Attributes:
        examples: of those trees that have any score.
    """

    def __init__(
        self,
        trees: Sequence[SearchTree],
        config: PipelineConfig,
        *,
        model_dir: Path | str,
        eos_token_id: int,
        rounds: int,
    ) -> None:
        # Negative weights and the KL take part, so that the comparison covers the whole loss.
        self._train = config.train.model_copy(update={"objective": "relative-correctness", "kl_beta": 0.1})
        self._seed, self._eos_token_id, self._rounds = config.seed, eos_token_id, rounds
        scores = [score_tree(tree, config.score) for tree in trees]
        self.examples = build_examples(trees, scores, self._train)
        self._trained = load_policy(model_dir, None, self._train, config.policy, seed=config.seed)
        _leave_reference(self._trained)

    def plan(self, chosen: Sequence[TrainingExample], tokens_per_update: int) -> list[list[PackedBatch]]:
        """The forward passes of each update over some examples."""
        packed = pack_examples(chosen, self._train, eos_token_id=self._eos_token_id)
        updates = plan_updates(
            packed,
            derive_generator(self._seed, "benchmark").permutation(len(packed)),
            tokens_per_update=tokens_per_update,
            tokens_per_microbatch=self._train.tokens_per_microbatch,
            break_even_tokens=6 * int(self._trained.model.config.hidden_size),
        )
        return list(updates)

    def figures(self, name: str, chosen: Sequence[TrainingExample], target: float | None) -> list[Figure]:
        """The speed-up on some examples, over rows that are batched and over rows that are not."""
        (batches,) = self.plan(chosen, 10**9)
        train, rounds = self._train, self._rounds
        return _compare(name, self._trained, train, chosen, batches, self._eos_token_id, rounds, target)


def _bushy_example(seed: int, num_prompt_tokens: int) -> TrainingExample:
    """A complete binary tree of 31 nodes, 10 tokens a step, every step scored.

    What a search leaves where steps seldom coincide, as those of a large model do. The tiny world's trees
    are slimmer: its steps coincide and are merged, and most have no sibling and so no score.
    """
    generator = derive_generator(seed, "bushy")
    parents = np.array([-1, *((node - 1) // 2 for node in range(1, NUM_NODES))], dtype=np.int32)
    depths = np.floor(np.log2(np.arange(1, NUM_NODES + 1))).astype(np.int32)
    is_leaf = np.arange(NUM_NODES) > parents[-1]
    tokens = [generator.integers(10, 300, STEP_TOKENS, dtype=np.int32) for _ in range(NUM_NODES)]
    tree = SearchTree(
        problem_id=f"bushy/train/{seed:05d}",
        policy_id="",
        seed=seed,
        prompt_token_ids=generator.integers(10, 300, num_prompt_tokens, dtype=np.int32),
        parents=parents,
        steps=("",) * NUM_NODES,
        token_ids=(np.zeros(0, dtype=np.int32), *tokens[1:]),
        visits=np.ones(NUM_NODES, dtype=np.int32),
        value_sums=np.zeros(NUM_NODES),
        outcomes=np.where(is_leaf, Outcome.WRONG, Outcome.OPEN).astype(np.int8),
        depths=depths,
    )
    weights = generator.normal(size=NUM_NODES)
    weights[0] = 0.0
    return TrainingExample(tree, weights)


def _compare(
    name: str,
    trained: TrainedPolicy,
    train: TrainConfig,
    examples: Sequence[TrainingExample],
    batches: Sequence[PackedBatch],
    eos_token_id: int,
    rounds: int,
    target: float | None,
) -> list[Figure]:
    """Packed against both ways of computing per-step samples; the gradients must agree."""
    rows = per_step_rows(examples, eos_token_id=eos_token_id)
    sides: dict[str, Callable[[], object]] = {
        "packed": lambda: add_gradients(trained, batches, train),
        "batched": lambda: per_step_gradients(trained, rows, train, rows_per_batch=ROWS_PER_PASS),
        "single": lambda: per_step_gradients(trained, rows, train, rows_per_batch=1),
    }
    gradients: dict[str, torch.Tensor] = {}

    def take(side: str, turn: int) -> float:
        sides[side]()
        gradients[side] = _take_gradients(trained)
        return float(len(rows))

    costs = in_turns({side: partial(take, side) for side in sides}, rounds=rounds)
    errors = [relative_error(gradients["packed"], gradients[side]) for side in ("batched", "single")]
    if not max(errors) <= TOLERANCE:
        raise ArithmeticError(f"tree-packed and per-step gradients differ by {max(errors):.1e}; allowed {TOLERANCE}")
    details = {
        "gradient_error": max(errors),
        "trees": len(examples),
        "steps_per_tree": round(len(rows) / len(examples), 2),
        "packed_tokens": sum(batch.num_tokens for batch in batches),
        "per_step_tokens": sum(len(context) + len(step) for context, step, _ in rows),
    }
    compare = partial(speedup, fast=costs["packed"], clock=clock_for(costs["batched"]), labels=("packed", "per_step"))
    figures = [
        compare(name, slow=costs["batched"], target=target),
        compare(f"{name}_unbatched", slow=costs["single"], target=None),
    ]
    figures[0].details.update(details)
    return figures


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
