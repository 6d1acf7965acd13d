"""What a training process has to do with the others: its share of an update, and sums over all of them.

One idea: a process that trains alone is a team of one, for which everything here does nothing; the loop knows one
case only. A team's processes hold the same weights, take the same updates and sum what each computed of them, so
they need no other agreement: a KL alarm or a gradient that is not finite stops all of them at the same update.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline_lib.training.batches.batching import PackedBatch, deal

NUMBERS_PER_SUM = 2**23  # 32 MiB in float32


@dataclass(frozen=True, slots=True)
class Team:
    """One process among those that train together.

    Args:
        rank: this process's number, from 0; number 0 writes the files.
        size: how many processes train together.
        accelerator: `accelerate.Accelerator`; None where it trains alone.
    """

    rank: int = 0
    size: int = 1
    accelerator: Any = None

    @property
    def writes(self) -> bool:
        """True for the one process that writes checkpoints and the policy."""
        return self.rank == 0

    def share(self, batches: Sequence[PackedBatch]) -> tuple[list[PackedBatch], int]:
        """The forward passes of this process, and how many idle ones make them as many as the others'."""
        shares = deal(batches, self.size)
        return shares[self.rank], max(map(len, shares)) - len(shares[self.rank])

    def add_up(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, in float64."""
        if self.size == 1:
            return list(values)
        local = torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        summed: list[float] = self.accelerator.reduce(local, reduction="sum").tolist()
        return summed

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums the gradients over the processes, in place; those of sharded weights are sums already."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size == 1 or isinstance(gradients[0], DTensor):
            return
        for bucket in _buckets(gradients):
            summed = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in bucket]), reduction="sum")
            parts = summed.split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Few sums instead of one per weight, without a second copy of all gradients."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and sum(other.numel() for other in bucket) + gradient.numel() > NUMBERS_PER_SUM:
            yield bucket
            bucket = []
        bucket.append(gradient)
    yield bucket


ALONE = Team()
