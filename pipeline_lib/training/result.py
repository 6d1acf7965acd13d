"""What a training run reports: a record per update, and their summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

KL_WINDOW = 5
# Nats per scored token. Measured in the tiny world: below it two greedy answers in a hundred differ from those of the
# policy before, within the noise of any evaluation; see tests/benchmarks/LOG.md.
MIN_CHANGE = 0.01
UpdateMetrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run did.

    Args:
        num_updates: optimizer updates.
        mean_loss: over all updates; the objective's own loss, which may be negative.
        last_loss: loss of the last update.
        mean_kl: KL(current || reference), nats per scored token, over all updates; nan where not measured.
        last_kl: over the last `KL_WINDOW` updates.
        negatives_pushed: by how many nats a token the steps of negative weight became less likely, mean of the last
            `KL_WINDOW` updates less that of the first; nan without any.
        num_tokens: computed in forward passes of the policy, padding and repeated prefixes included.
        num_unique_tokens: what the trees hold of these, once per epoch.
        num_scored_tokens: tokens with a loss, once per epoch.
        stopped_by_kl_alarm: training ended early.
        policy_change: mean of ``|log p after - log p before|`` over scored tokens of the first update, in nats.
        history: one record per update.
    """

    num_updates: int
    mean_loss: float
    last_loss: float
    mean_kl: float
    last_kl: float
    negatives_pushed: float
    num_tokens: int
    num_unique_tokens: int
    num_scored_tokens: int
    stopped_by_kl_alarm: bool
    policy_change: float
    history: tuple[UpdateMetrics, ...] = field(repr=False)

    @property
    def taught(self) -> bool:
        """False where the next policy is as good as the one before: its accuracy says nothing about the method."""
        return self.policy_change >= MIN_CHANGE

    def metrics(self) -> dict[str, float]:
        """The headline numbers by metric name; what was not measured is left out."""
        values = {
            "train/updates": float(self.num_updates),
            "train/loss": self.mean_loss,
            "train/last_loss": self.last_loss,
            "train/kl": self.mean_kl,
            "train/last_kl": self.last_kl,
            "train/negatives_pushed": self.negatives_pushed,
            "train/tokens": float(self.num_tokens),
            "train/scored_tokens": float(self.num_scored_tokens),
            "train/tokens_vs_unique": self.num_tokens / max(self.num_unique_tokens, 1),
            "train/stopped_by_kl_alarm": float(self.stopped_by_kl_alarm),
            "train/policy_change": self.policy_change,
            "train/taught": float(self.taught),
        }
        return {name: value for name, value in values.items() if not math.isnan(value)}


def kl_alarm_rings(history: Sequence[UpdateMetrics], kl_alarm: float) -> bool:
    """True when the mean KL over the last `KL_WINDOW` updates is above `kl_alarm`, or not a number."""
    kls = [update["kl"] for update in history[-KL_WINDOW:] if "kl" in update]
    return bool(kls) and not sum(kls) / len(kls) <= kl_alarm


def summarise(history: Sequence[UpdateMetrics], *, kl_alarm: float) -> TrainResult:
    """The result of a run from its updates, at least one; the last of them has ``policy_change``."""
    losses = [update["loss"] for update in history]
    kls = [update["kl"] for update in history if "kl" in update]
    negatives = [update["nll_negative"] for update in history if "nll_negative" in update]
    return TrainResult(
        num_updates=len(history),
        mean_loss=sum(losses) / len(losses),
        last_loss=losses[-1],
        mean_kl=_mean(kls),
        last_kl=_mean(kls[-KL_WINDOW:]),
        negatives_pushed=_mean(negatives[-KL_WINDOW:]) - _mean(negatives[:KL_WINDOW]),
        num_tokens=_total(history, "num_tokens"),
        num_unique_tokens=_total(history, "num_unique_tokens"),
        num_scored_tokens=_total(history, "num_scored_tokens"),
        stopped_by_kl_alarm=kl_alarm_rings(history, kl_alarm),
        policy_change=history[-1]["policy_change"],
        history=tuple(history),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _total(history: Sequence[UpdateMetrics], name: str) -> int:
    return int(sum(update[name] for update in history))
