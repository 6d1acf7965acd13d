"""What one run of a study came to, read from the summary that its command wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline_lib.study.grid import Cell

SEARCHED = {  # what is known of a search: how it is read
    "right": "share of its rollouts that are right",
    "solved": "share of its problems with a right rollout, so pass@n of n rollouts",
    "all_right": "share of its problems of which every rollout is right",
    "distinct_steps": "different steps that it found for a problem",
    "tokens_per_rollout": "tokens that a rollout sampled; a tree's share their beginnings",
}


class Measured(BaseModel):
    """A policy of a run: the base, or that of an iteration.

    Args:
        accuracy: greedy, by test set, in [0, 1].
        sampled: mean accuracy of sampled answers, by test set that was sampled.
        validation: greedy accuracy on the validation set; None where nothing was measured.
        generated_tokens: sampled by training up to here, evaluations aside.
        trained_tokens: that a training pass went over up to here.
        updates: of the optimizer, up to here.
        kl: to the policy before, nats per token; None where it was not measured.
        negatives_pushed: by how many nats a token training made the steps of negative weight less likely; None without.
        seconds: of searching and training up to here, evaluations aside.
        search: of the search that it was trained on, by the policy before: `SEARCHED`; empty where there was none.
    """

    model_config = ConfigDict(frozen=True)

    accuracy: dict[str, float]
    sampled: dict[str, float] = {}
    validation: float | None = None
    generated_tokens: int = 0
    trained_tokens: int = 0
    updates: int = 0
    kl: float | None = None
    negatives_pushed: float | None = None
    seconds: float = 0.0
    search: dict[str, float] = {}


class CellResult(BaseModel):
    """One run of a study.

    Args:
        method: its name.
        family: dataset that was trained on.
        seed: of the run.
        attempt: which of the method's tries.
        overrides: all that differs from the study's base.
        policies: the base, then those of the iterations.
        champion: index of the best by validation accuracy, the earliest of equals.
        stopped_because: why the run ended.
    """

    model_config = ConfigDict(frozen=True)

    method: str
    family: str
    seed: int
    attempt: int
    overrides: tuple[str, ...]
    policies: tuple[Measured, ...]
    champion: int
    stopped_because: str

    @property
    def last(self) -> Measured:
        """The policy after all iterations."""
        return self.policies[-1]

    @property
    def rises_for(self) -> int:
        """Iterations from the base on until validation accuracy falls for the first time."""
        validated = [policy.validation or 0.0 for policy in self.policies]
        falls = [index for index in range(1, len(validated)) if validated[index] < validated[index - 1]]
        return falls[0] - 1 if falls else len(validated) - 1

    @property
    def best(self) -> Measured:
        """The policy that validation chose."""
        return self.policies[self.champion]


def result_of(cell: Cell, summary: Mapping[str, Any]) -> CellResult:
    """The result of a cell whose command wrote `summary`."""
    policies = [
        Measured(
            accuracy=summary["base"],
            sampled=_averages(summary["base_sampled"]),
            validation=summary["base_validation"],
        )
    ]
    for iteration in summary["iterations"]:
        policies.append(_measured(iteration, policies[-1]))
    validated = [-1.0 if policy.validation is None else policy.validation for policy in policies]
    return CellResult(
        method=cell.method,
        family=cell.family,
        seed=cell.seed,
        attempt=cell.attempt,
        overrides=(*cell.overrides, *cell.options),
        policies=tuple(policies),
        champion=validated.index(max(validated)),
        stopped_because=summary["stopped_because"],
    )


def _measured(iteration: Mapping[str, Any], before: Measured) -> Measured:
    """An iteration that did not train left the policy, and so its accuracies, as they were."""
    seconds, train = iteration["seconds"], iteration["train"]
    is_trained = iteration["validation"] is not None or bool(iteration["accuracy"])
    return Measured(
        accuracy=iteration["accuracy"] if is_trained else before.accuracy,
        sampled=_averages(iteration["sampled"]) if is_trained else before.sampled,
        validation=iteration["validation"] if is_trained else before.validation,
        generated_tokens=before.generated_tokens + int(iteration["search"]["tokens_generated"] or 0),
        trained_tokens=before.trained_tokens + int(train["tokens"]),
        updates=before.updates + int(train["updates"]),
        kl=train["kl"],
        negatives_pushed=train.get("negatives_pushed"),
        seconds=before.seconds + sum(seconds.get(name, 0.0) for name in ("search", "first_search", "score", "train")),
        search=_searched(iteration),
    )


def _searched(iteration: Mapping[str, Any]) -> dict[str, float]:
    audit, search = iteration.get("audit"), iteration["search"]
    if not audit or not audit.get("rollouts"):  # GRPO searches nothing
        return {}
    num_problems, num_rollouts = audit["num_problems"], sum(audit["rollouts"].values())
    return {
        "right": audit["rollouts"].get("correct", 0) / num_rollouts,
        "solved": 1 - audit["num_all_wrong"] / num_problems,
        "all_right": audit["num_all_correct"] / num_problems,
        "distinct_steps": audit["num_steps"] / num_problems,
        "tokens_per_rollout": search["tokens_generated"] / num_rollouts,
    }


def _averages(sampled: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """avg@n by test set."""
    return {
        name: float(value)
        for name, figures in sampled.items()
        for key, value in figures.items()
        if key.startswith("avg@")
    }
