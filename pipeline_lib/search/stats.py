"""What a search cost and how well it kept the engine busy."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from pipeline_lib.types import Record


class SearchStats(Record):
    """Counters of one search; rates are properties, so that the counters of shards can be added up."""

    num_problems: int = Field(0, description="Trees handed to `on_tree`.")
    num_rollouts: int = Field(0, description="Simulations backed up.")
    tokens_generated: int = Field(0, description="Tokens sampled, without end-of-sequence tokens.")
    tokens_kept: int = Field(0, description="Of those, the ones in a step that was inserted or merged.")
    num_errors: int = Field(0, description="Requests that the engine failed to answer, each try of its own.")
    num_redrawn: int = Field(0, description="Rollouts that it failed to give and gave when it was asked again.")
    num_timeouts: int = Field(0, description="Gradings that passed their deadline.")
    seconds: float = Field(0.0, description="Wall time.")
    in_flight_s: float = Field(0.0, description="Requests in flight, integrated over the time inside `policy.poll`.")
    slot_steps: int = Field(0, description="Decode steps times rows that held a request.")
    capacity_steps: int = Field(0, description="Decode steps times rows there are; 0 where the engine does not count.")

    @property
    def tokens_per_s(self) -> float:
        """Tokens sampled per second of wall time."""
        return self.tokens_generated / self.seconds if self.seconds else 0.0

    @property
    def tokens_kept_share(self) -> float:
        """Share of the sampled tokens that stand in a tree, in [0, 1]."""
        return self.tokens_kept / self.tokens_generated if self.tokens_generated else 1.0

    @property
    def engine_idle_share(self) -> float:
        """Share of the engine's rows that held no request, over all decode steps, in [0, 1]."""
        return 1.0 - self.slot_steps / self.capacity_steps if self.capacity_steps else 0.0

    @property
    def mean_in_flight(self) -> float:
        """Requests that were in flight at a time, on average."""
        return self.in_flight_s / self.seconds if self.seconds else 0.0

    @property
    def problems_per_hour(self) -> float:
        """Trees completed per hour of wall time."""
        return 3600 * self.num_problems / self.seconds if self.seconds else 0.0

    def metrics(self) -> dict[str, float]:
        """Counters worth a chart, and every rate, by name."""
        counts = ("num_problems", "num_rollouts", "tokens_generated", "tokens_kept")
        troubles = ("num_errors", "num_redrawn", "num_timeouts")
        rates = ("tokens_per_s", "tokens_kept_share", "engine_idle_share", "mean_in_flight", "problems_per_hour")
        return {name: float(getattr(self, name)) for name in (*counts, *troubles, "seconds", *rates)}


def total_stats(shards: Iterable[SearchStats]) -> SearchStats:
    """The stats of searches that ran one after the other, as if they had been one."""
    shards = list(shards)
    return SearchStats(**{name: sum(getattr(shard, name) for shard in shards) for name in SearchStats.model_fields})
