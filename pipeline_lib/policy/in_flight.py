"""Requests between `submit` and `poll`, which every engine keeps in the same way."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline_lib.policy.prompting.stop_rule import AnswerEnd
from pipeline_lib.policy.protocol import FinishReason, SampleRequest, SampleResult
from pipeline_lib.types import Float32Array, Int32Array

GATHERED_SHARE = 4  # one finished request for every four rows is handed over at once, while others wait for a row


class ModelLimits(NamedTuple):
    """What a model can be given.

    Args:
        context: prompt and answer together, in tokens.
        vocab_size: token ids are in [0, vocab_size).
    """

    context: int
    vocab_size: int


class InFlight:
    """The requests that an engine was given and has not answered yet.

    Attributes:
        waiting: those that it has not started, the first one first; the engine takes them from here.
    """

    def __init__(self) -> None:
        self.waiting: deque[SampleRequest] = deque()
        self._ids: set[str] = set()
        self._results: list[SampleResult] = []

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def has_results(self) -> bool:
        """Whether `hand_over` would give any."""
        return bool(self._results)

    def submit(self, requests: Sequence[SampleRequest], limits: ModelLimits | None = None) -> None:
        """Takes requests in; one that cannot run within `limits` is finished at once. None lets all of them wait.

        Raises:
            ValueError: a request id is in flight already.
        """
        for request in requests:
            if request.request_id in self._ids:
                raise ValueError(f"request {request.request_id!r} is in flight already; request ids must be unique")
            self._ids.add(request.request_id)
            reason = None if limits is None else refusal(request, limits)
            if reason is None:
                self.waiting.append(request)
            else:
                self.finish(request.request_id, (), reason)

    def finish(
        self,
        request_id: str,
        token_ids: Sequence[int] | Int32Array,
        reason: FinishReason,
        end_token_id: int | None = None,
        *,
        logprobs: Sequence[float] | Float32Array | None = None,
    ) -> None:
        """Keeps a result until `hand_over`; see `SampleResult`. `logprobs` may go on past the answer's own tokens."""
        ids = np.array(token_ids, dtype=np.int32)
        kept = _first_logprobs(logprobs, len(ids))
        self._results.append(SampleResult(request_id, ids, reason, end_token_id, logprobs=kept))

    def stop(
        self,
        request_id: str,
        token_ids: Sequence[int] | Int32Array,
        end: AnswerEnd,
        *,
        logprobs: Sequence[float] | Float32Array | None = None,
    ) -> None:
        """Keeps the result of an answer that ended by the stop rule.

        Args:
            request_id: the request's.
            token_ids: all that was sampled, past the end too.
            end: see `prompting.stop_rule`.
            logprobs: of the sampled tokens, where the request asks.
        """
        stopped = SampleResult(
            request_id,
            np.array(token_ids[: end.num_tokens], dtype=np.int32),
            FinishReason.STOP,
            num_chars=end.num_chars,
            num_beyond=len(token_ids) - end.num_tokens,
            logprobs=_first_logprobs(logprobs, end.num_tokens),
        )
        self._results.append(stopped)

    def needs_pass(self, capacity: int) -> bool:
        """Whether an engine with `capacity` rows works on before it hands over what has finished.

        It does until something has; and while others wait for a row, until a share of the rows have: whoever reads
        results finds cold processor caches after a pass, so that a few at a time cost half as much.
        """
        if not self._results:
            return bool(self._ids)
        return bool(self.waiting) and len(self._results) < capacity // GATHERED_SHARE

    def hand_over(self) -> list[SampleResult]:
        """What has finished since the last call; it is in flight no more."""
        results, self._results = self._results, []
        self._ids.difference_update(result.request_id for result in results)
        return results

    def refuse_any(self) -> None:
        """Raises RuntimeError while requests are in flight: under them the weights must not change."""
        if self._ids:
            raise RuntimeError(f"{len(self)} requests are in flight; poll them before the weights change")

    def clear(self) -> None:
        """Forgets all requests."""
        self.waiting.clear()
        self._ids.clear()
        self._results.clear()


def _first_logprobs(logprobs: Sequence[float] | Float32Array | None, count: int) -> Float32Array | None:
    """`[count]` those of an answer's own tokens, as a copy; None where none were asked for."""
    return None if logprobs is None else np.array(logprobs[:count], dtype=np.float32)


def refusal(request: SampleRequest, limits: ModelLimits) -> FinishReason | None:
    """Why a request ends before it starts, or None; bad token ids are data, not an exception.

    Ids that fill the context, or more, are no failure: asked again, they would leave as little room.
    """
    ids = request.token_ids
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= limits.vocab_size:
        return FinishReason.ERROR
    return FinishReason.LENGTH if len(ids) >= limits.context or request.params.max_new_tokens < 1 else None
