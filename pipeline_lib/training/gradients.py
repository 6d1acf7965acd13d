"""Forward and backward of one optimizer update, whatever the objective and however many processes share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline_lib.config import TrainConfig
from pipeline_lib.training.batches.batching import PackedBatch, idle_batch
from pipeline_lib.training.log_probs import TokenTerms, token_terms
from pipeline_lib.training.objectives import (
    clipped_surrogate_loss,
    kl_penalty,
    relative_correctness_loss,
    rft_loss,
    step_dpo_loss,
)
from pipeline_lib.training.processes.team import ALONE, Team
from pipeline_lib.training.result import UpdateMetrics
from pipeline_lib.training.trained_policy import TrainedPolicy


class _Counts(NamedTuple):
    """What losses are divided by: counts over a whole update, however it is cut.

    Args:
        weighted_tokens: scored tokens with a weight, at least 1.
        scored_tokens: all scored tokens; the KL is taken on these.
        pairs: of step-dpo.
        negative_tokens: scored tokens with a negative weight; no loss is divided by these.
    """

    weighted_tokens: int
    scored_tokens: int
    pairs: int
    negative_tokens: int

    @classmethod
    def of(cls, batches: Sequence[PackedBatch]) -> _Counts:
        return cls(
            max(1, sum(batch.num_weighted_tokens for batch in batches)),
            sum(batch.num_scored_tokens for batch in batches),
            sum(batch.num_pairs for batch in batches),
            sum(int((batch.weights < 0).sum()) for batch in batches),
        )


def add_gradients(
    trained: TrainedPolicy, batches: Sequence[PackedBatch], config: TrainConfig, team: Team = ALONE
) -> UpdateMetrics:
    """Adds the gradient of one update's loss to the trainable parameters, one forward pass after the other.

    Args:
        trained: what the gradients are added to; without gradients, where a team adds them up.
        batches: the update's forward passes, those of all processes.
        config: objective and its numbers.
        team: deals out the batches; every process ends with the same gradients and metrics.

    Returns:
        ``loss``; ``nll``, the unweighted mean negative log-likelihood of scored tokens; ``nll_negative``, of those
        whose weight is negative, where there are any; ``kl`` where there is a reference; ``num_tokens``,
        ``num_unique_tokens``, ``num_scored_tokens``.
    """
    counts = _Counts.of(batches)
    loss_sum = nll_sum = negative_sum = kl_sum = 0.0
    has_reference = config.needs_reference
    mine, num_idle = team.share(batches)
    for batch in mine:
        terms = batch_terms(trained, batch, with_reference=has_reference)
        loss = _loss(terms, batch, config, counts)
        loss.backward()
        loss_sum += float(loss.detach())
        weights = torch.from_numpy(batch.weights).to(terms.log_probs.device)
        nll_sum -= float(terms.log_probs.detach()[weights != 0].sum())
        negative_sum -= float(terms.log_probs.detach()[weights < 0].sum())
        if terms.kls is not None:
            kl_sum += float(terms.kls.detach().sum())
    for _ in range(num_idle):
        (0 * batch_terms(trained, idle_batch(), with_reference=has_reference).log_probs.sum()).backward()
    team.add_up_gradients(trained.trainable().values())
    loss_sum, nll_sum, negative_sum, kl_sum = team.add_up((loss_sum, nll_sum, negative_sum, kl_sum))
    metrics = {
        "loss": loss_sum,
        "nll": nll_sum / counts.weighted_tokens,
        "num_tokens": float(sum(batch.num_tokens for batch in batches)),
        "num_unique_tokens": float(sum(batch.num_unique_tokens for batch in batches)),
        "num_scored_tokens": float(counts.weighted_tokens),
    }
    if counts.negative_tokens:
        metrics["nll_negative"] = negative_sum / counts.negative_tokens
    return metrics | ({"kl": kl_sum / counts.scored_tokens} if has_reference else {})


def batch_terms(trained: TrainedPolicy, batch: PackedBatch, *, with_reference: bool) -> TokenTerms:
    """Log-probabilities, and KL where there is a reference, of the batch's scored tokens: one forward pass."""

    def forward() -> TokenTerms:
        visible = trained.visible(batch)
        targets = torch.from_numpy(batch.targets).to(trained.device)
        # The reference goes first: PEFT freezes the trained adapter while another is active.
        reference_hidden = trained.reference_hidden_states(batch, visible) if with_reference else None
        hidden = trained.hidden_states(batch, visible)
        with trained.autocast():
            return token_terms(
                hidden,
                trained.head,
                targets,
                reference_hidden=reference_hidden,
                reference_head=trained.reference_head if with_reference else None,
            )

    return trained.with_weights(forward)


def log_probs_of(trained: TrainedPolicy, batches: Sequence[PackedBatch], team: Team = ALONE) -> list[Tensor]:
    """`[M]` float32 on the CPU each: log-probabilities of scored tokens as the policy now is, no gradients.

    Args:
        trained: the policy.
        batches: forward passes of all processes.
        team: deals out the batches; the result is this process's share.
    """
    mine, num_idle = team.share(batches)

    def pass_of(batch: PackedBatch) -> Tensor:
        return trained.without_gradients(lambda: batch_terms(trained, batch, with_reference=False)).log_probs

    found = [pass_of(batch).float().cpu() for batch in mine]
    for _ in range(num_idle):
        pass_of(idle_batch())
    return found


def mean_change(before: Sequence[Tensor], after: Sequence[Tensor], team: Team = ALONE) -> float:
    """Mean of ``|after - before|`` over the scored tokens of all processes, in nats; see `log_probs_of`."""
    moved = sum(float((new - old).abs().sum()) for old, new in zip(before, after, strict=True))
    moved, num_tokens = team.add_up((moved, sum(old.numel() for old in before)))
    return moved / num_tokens


def _loss(terms: TokenTerms, batch: PackedBatch, config: TrainConfig, counts: _Counts) -> Tensor:
    """The objective's loss of one forward pass, and the KL penalty under any."""
    loss = _objective_loss(terms, batch, config, counts)
    return loss + kl_penalty(terms.kls, kl_beta=config.kl_weight, num_scored_tokens=counts.scored_tokens)


def _objective_loss(terms: TokenTerms, batch: PackedBatch, config: TrainConfig, counts: _Counts) -> Tensor:
    if config.objective == "rft":
        return rft_loss(terms.log_probs, num_scored_tokens=counts.scored_tokens)
    if config.objective == "step-dpo":
        assert terms.reference_log_probs is not None
        return step_dpo_loss(
            terms.log_probs,
            terms.reference_log_probs,
            torch.from_numpy(batch.segments).to(terms.log_probs.device),
            num_pairs=batch.num_pairs,
            dpo_beta=config.dpo_beta,
            num_pairs_in_update=counts.pairs,
        )
    weights = torch.from_numpy(batch.weights).to(terms.log_probs)
    if config.ratio_clip is None:
        return relative_correctness_loss(
            terms.log_probs, weights, None, kl_beta=0, num_scored_tokens=counts.weighted_tokens
        )
    assert terms.reference_log_probs is not None
    return clipped_surrogate_loss(
        terms.log_probs,
        terms.reference_log_probs,
        weights,
        ratio_clip=config.ratio_clip,
        num_scored_tokens=counts.weighted_tokens,
    )
