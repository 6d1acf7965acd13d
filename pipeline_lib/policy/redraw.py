"""Asks an engine again what it failed to answer: a failure is no answer, neither a right nor a wrong one.

One idea: the same request with the same seed. Where the engine is batch-invariant a mended answer is the very one
that would have come without the failure; so results with failures equal those without, or there is no result.
Elsewhere it is a new draw of an answer that does not fail, which is why the share of failures is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline_lib.policy.protocol import FinishReason, Policy, SampleRequest, SampleResult

TRIES = 3  # of one request; what fails three times in a row fails for a reason that a fourth try would meet too
FEW_FAILURES = 5  # always borne: a share of few answers says nothing about an engine
MAX_FAILED_SHARE = 0.01  # of a stage's answers, as `policy.max_failed_share`


class EngineError(RuntimeError):
    """An engine failed too often for what it answers to be trusted; the message is one line and says what to do."""


class Redraws:
    """A policy's requests and results without its failures, which are asked again.

    Failures and mended answers are counted in the policy's own `stats`.

    Args:
        policy: any engine; nothing else may be in flight on it.
        num_expected: answers that will be asked for, at most.
        max_failed_share: share of these that may fail, in [0, 1]; `FEW_FAILURES` always may, with 0 none.
    """

    def __init__(self, policy: Policy, *, num_expected: int, max_failed_share: float = MAX_FAILED_SHARE) -> None:
        self._policy = policy
        self._expected, self._share = num_expected, max_failed_share
        self._allowed = max(FEW_FAILURES, int(max_failed_share * num_expected)) if max_failed_share else 0
        self._requests: dict[str, SampleRequest] = {}
        self._failures: Counter[str] = Counter()  # of requests in flight
        self.num_errors = 0
        self.num_redrawn = 0

    @property
    def num_in_flight(self) -> int:
        """Requests submitted and not yet returned by `poll`."""
        return len(self._requests)

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        """Queues requests; see `Policy.submit`."""
        self._requests |= {request.request_id: request for request in requests}
        self._policy.submit(requests)

    def poll(self) -> list[SampleResult]:
        """Answers that have come since the last call, none of them a failure; may be none while others are asked again.

        Raises:
            EngineError: a request failed `TRIES` times, or more failed than may.
        """
        answered, again = [], []
        for result in self._policy.poll():
            if result.finish_reason is FinishReason.ERROR:
                again.append(self._count_failure(result.request_id))
            else:
                self._forget(result.request_id)
                answered.append(result)
        if again:
            self._policy.submit(again)
        return answered

    def _count_failure(self, request_id: str) -> SampleRequest:
        """The request that failed, to be asked again."""
        self.num_errors += 1
        self._policy.stats.num_errors += 1
        self._failures[request_id] += 1
        if self._failures[request_id] == TRIES:
            raise EngineError(
                f"the engine failed {TRIES} times to answer {request_id}, so this stage has no result; run again to go "
                "on. Where it fails at the same place, look at the engine's log, or try another policy.dtype or "
                "policy.backend"
            )
        if self.num_errors > self._allowed:
            raise EngineError(
                f"the engine failed to give {self.num_errors} of at most {self._expected} answers, more than "
                f"policy.max_failed_share={self._share:g} allows, so this stage has no result; look at the engine's "
                "log, then run again to go on, or raise that share"
            )
        return self._requests[request_id]

    def _forget(self, request_id: str) -> None:
        del self._requests[request_id]
        if self._failures.pop(request_id, 0):
            self.num_redrawn += 1
            self._policy.stats.num_redrawn += 1


def draw_all(
    policy: Policy, requests: Sequence[SampleRequest], *, max_failed_share: float = MAX_FAILED_SHARE
) -> dict[str, SampleResult]:
    """Submits everything at once and returns each answer by request id; what failed is asked again.

    Args:
        policy: any engine; nothing else may be in flight on it.
        requests: with unique ids.
        max_failed_share: see `Redraws`.

    Raises:
        EngineError: see `Redraws.poll`.
    """
    draws = Redraws(policy, num_expected=len(requests), max_failed_share=max_failed_share)
    draws.submit(requests)
    results: dict[str, SampleResult] = {}
    while draws.num_in_flight:
        results |= {result.request_id: result for result in draws.poll()}
    return results
