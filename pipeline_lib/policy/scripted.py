"""A deterministic fake with meaning: a policy whose answers are written by a function.

One idea: what a request gets back depends on the request alone, but when it comes back does not: results
arrive in a shuffled order and after varying delays, so that a scheduler that only works by luck fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline_lib.policy.in_flight import InFlight
from pipeline_lib.policy.prompting.stop_rule import NO_STOP, StopRule, end_of_answer, rule_of
from pipeline_lib.policy.protocol import Codec, EngineStats, FinishReason, SampleRequest, SampleResult
from pipeline_lib.seeding import derive_generator, derive_seed
from pipeline_lib.types import Float32Array, Int32Array

Script = Callable[[str, str, int], str | None]


class CharCodec:
    """Characters as ids, with two special ones: QUESTION opens a prompt, ANSWER ends it.

    Args:
        stop: what ends an answer besides the policy's own end.

    Example: ``encode_prompt("hi")`` is ``[0, 106, 107, 1]``; ``decode`` of it is "hi".
    """

    QUESTION, ANSWER, NUM_SPECIAL = 0, 1, 2

    def __init__(self, stop: StopRule = NO_STOP) -> None:
        self.stop = stop

    def encode_prompt(self, question: str) -> Int32Array:
        return np.array([self.QUESTION, *self.encode(question), self.ANSWER], dtype=np.int32)

    def encode(self, text: str) -> Int32Array:
        return np.array([ord(char) + self.NUM_SPECIAL for char in text], dtype=np.int32)

    def decode(self, token_ids: Int32Array) -> str:
        return "".join(chr(i - self.NUM_SPECIAL) for i in token_ids.tolist() if i >= self.NUM_SPECIAL)


class ScriptedPolicy:
    """A `Policy` that answers what `script` says.

    Args:
        script: (prompt text, prefix text, seed) to the continuation; None makes the request an ERROR.
            Both texts are decoded, special tokens left out; the prefix is what follows the prompt.
        codec: its prompts must all end alike, as chat templates make them; that is where the prefix starts.
        policy_id: recorded with everything that is sampled.
        capacity: requests that run at once; the rest wait.
        max_context_tokens: answers end there with LENGTH, before their first token where the prompt is longer.
        max_delay: a request takes 1 to so many engine steps.
        end_token_ids: what ends its answers, drawn by the request's seed; empty does not tell.
        seed: of delays and order, never of results.

    Example: ``ScriptedPolicy(lambda prompt, prefix, seed: "#### 2", CharCodec())`` always answers 2.
    """

    def __init__(
        self,
        script: Script,
        codec: Codec,
        *,
        policy_id: str = "scripted",
        capacity: int = 64,
        max_context_tokens: int = 4096,
        max_delay: int = 5,
        end_token_ids: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.script, self.codec, self.policy_id, self.capacity = script, codec, policy_id, capacity
        self.batch_invariant = True
        self.stats = EngineStats()
        self.max_context_tokens, self.max_delay, self.seed = max_context_tokens, max_delay, seed
        self.end_token_ids = tuple(end_token_ids)
        self._prompt_end = _common_end(codec.encode_prompt("a"), codec.encode_prompt("b"))
        self._order = derive_generator(seed, "scripted order")
        self._in_flight = InFlight()
        self._steps_left: dict[str, int] = {}
        self._running: dict[str, SampleRequest] = {}

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        self._in_flight.submit(requests)

    def poll(self) -> list[SampleResult]:
        finished: list[str] = []
        while not finished and self.num_in_flight:
            self._start_waiting()
            self.stats.slot_steps += len(self._running)
            self.stats.capacity_steps += self.capacity
            finished = [name for name, steps in self._steps_left.items() if steps == 0]
            self._steps_left = {name: steps - 1 for name, steps in self._steps_left.items() if steps > 0}
        for name in finished:
            self._answer(self._running.pop(name))
        results = self._in_flight.hand_over()
        return [results[i] for i in self._order.permutation(len(results))]

    def close(self) -> None:
        self._in_flight.clear()
        self._running.clear()
        self._steps_left.clear()

    def _start_waiting(self) -> None:
        """Lets requests run while there is room, each for a number of steps of its own."""
        while self._in_flight.waiting and len(self._running) < self.capacity:
            request = self._in_flight.waiting.popleft()
            self._running[request.request_id] = request
            self._steps_left[request.request_id] = (
                derive_seed(self.seed, request.request_id, request.seed) % self.max_delay
            )

    def _answer(self, request: SampleRequest) -> None:
        """Finishes a request with what the script says."""
        room = max(0, min(self.max_context_tokens - len(request.token_ids), request.params.max_new_tokens))
        cut = _end_of(self._prompt_end, request.token_ids)
        prompt, prefix = (self.codec.decode(part) for part in (request.token_ids[:cut], request.token_ids[cut:]))
        text = self.script(prompt, prefix, request.seed)
        if text is None:
            self._in_flight.finish(request.request_id, (), FinishReason.ERROR)
            return
        token_ids = self.codec.encode(text)
        self.stats.tokens_prefilled += len(request.token_ids)
        self.stats.tokens_generated += min(len(token_ids) + 1, room)
        rule, logprobs = rule_of(self.codec), _invented_logprobs(request, len(token_ids))
        end = end_of_answer(token_ids[:room], request, self.codec, rule) if rule else None
        if end is not None:
            self._in_flight.stop(request.request_id, token_ids[:room], end, logprobs=logprobs)
        elif len(token_ids) < room:
            ended_by = self.end_token_ids[request.seed % len(self.end_token_ids)] if self.end_token_ids else None
            self._in_flight.finish(request.request_id, token_ids, FinishReason.STOP, ended_by, logprobs=logprobs)
        else:
            self._in_flight.finish(request.request_id, token_ids[:room], FinishReason.LENGTH, logprobs=logprobs)


def _invented_logprobs(request: SampleRequest, count: int) -> Float32Array | None:
    """`[count]`, since no script knows any: by the request's seed, -log p exponential of mean 1. None unasked."""
    if not request.params.logprobs:
        return None
    return -derive_generator(request.seed, "log-probabilities").exponential(size=count).astype(np.float32)


def _common_end(left: Int32Array, right: Int32Array) -> Int32Array:
    """The longest ids that both arrays end with."""
    length = 0
    while length < min(len(left), len(right)) and left[-1 - length] == right[-1 - length]:
        length += 1
    return left[len(left) - length :]


def _end_of(needle: Int32Array, ids: Int32Array) -> int:
    """Where the last occurrence of `needle` in `ids` ends; the whole length when there is none.

    The last: worked examples before the question end alike.
    """
    if len(needle) == 0 or len(ids) < len(needle):
        return len(ids)
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(needle))
    hits = np.flatnonzero((windows == needle).all(axis=1))
    return int(hits[-1]) + len(needle) if len(hits) else len(ids)
