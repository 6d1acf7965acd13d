"""An engine that fails now and then: a real one, some of whose answers are turned into failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from pipeline_lib.policy import FinishReason, Policy, SampleRequest, SampleResult
from pipeline_lib.seeding import derive_generator

BURST = 8


class FaultyPolicy:
    """Whatever `inner` answers, but for a share of its answers, each try for itself, which come half and as ERROR.

    Args:
        inner: any engine; its other attributes are this one's.
        share: of the answers that fail, in [0, 1].
        burst: answers in a row that fail together.
        seed: of which ones do.
    """

    def __init__(self, inner: Policy, share: float, *, burst: int = 1, seed: int = 0) -> None:
        self._inner, self._share, self._burst = inner, share, burst
        self._rng = derive_generator(seed, "faults")
        self._left = 0
        self.num_failed = 0
        self.asked: list[SampleRequest] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        self.asked += requests
        self._inner.submit(requests)

    def poll(self) -> list[SampleResult]:
        return [self._broken(result) if self._fails() else result for result in self._inner.poll()]

    def _fails(self) -> bool:
        if not self._left and self._rng.random() < self._share / self._burst:
            self._left = self._burst
        self._left = max(0, self._left - 1) if (failed := self._left > 0) else 0
        self.num_failed += failed
        return failed

    @staticmethod
    def _broken(result: SampleResult) -> SampleResult:
        return SampleResult(result.request_id, result.token_ids[: len(result.token_ids) // 2], FinishReason.ERROR)


def failing(
    open_policy: Callable[..., Policy], share: float, *, burst: int = 1, seed: int = 0
) -> Callable[..., FaultyPolicy]:
    """`open_policy` with faults; each engine that it opens has faults of its own, the first one those of `seed`."""
    opened = count(seed)
    return lambda *arguments: FaultyPolicy(open_policy(*arguments), share, burst=burst, seed=next(opened))
