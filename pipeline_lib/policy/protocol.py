"""The Policy protocol: what the search, the evaluation and the benchmarks ask of an engine.

One idea: requests go in at any time, finished ones come out as they finish, and nobody waits for a
batch. Each request carries its own seed, so a result is a function of the request alone wherever
the engine is batch-invariant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from pipeline_lib.config.truncation import Cutoff
from pipeline_lib.types import Float32Array, Int32Array


class FinishReason(StrEnum):
    """Why a rollout ended."""

    STOP = "stop"  # the policy ended its answer, by a token or by a stop string
    LENGTH = "length"  # max_new_tokens or the context was full
    ERROR = "error"  # the engine gave up on this request: no answer, see `redraw`; token_ids hold what there was


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw tokens.

    Args:
        max_new_tokens: at least 1.
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        top_k: only so many of the most probable tokens take part; 0 keeps all.
        min_p: only tokens at least so probable, in units of the most probable one, take part; in [0, 1].
        logprobs: whether the result tells how probable its tokens were.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One continuation to sample.

    Args:
        request_id: unique among requests in flight.
        token_ids: int32, prompt and prefix; sampling goes on right after them.
        params: see `SamplingParams`.
        seed: in [0, 2**63); token t is drawn from (seed, t), whatever else is in the batch.
        num_prefix_tokens: of `token_ids` the last ones, with which the answer begins: what ends it may begin there.
    """

    request_id: str
    token_ids: Int32Array
    params: SamplingParams
    seed: int
    num_prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One finished request.

    Args:
        request_id: the request's.
        token_ids: int32, the new tokens only, without the one that ended the answer.
        finish_reason: why it ended.
        end_token_id: which token ended it, of the several that may; None where none did, or the engine does not tell.
        num_chars: where a stop string ended it, how many characters of what its tokens spell are the answer's.
        num_beyond: tokens that were sampled past such an end, those of the stop string included.
        logprobs: `[T]` float32, log-probability of each of `token_ids` in nats, as the model has it: at temperature 1,
            with no token left out. None where the request did not ask, or never began.
    """

    request_id: str
    token_ids: Int32Array
    finish_reason: FinishReason
    end_token_id: int | None = None
    num_chars: int | None = None
    num_beyond: int = 0
    logprobs: Float32Array | None = None


def text_of(result: SampleResult, codec: Codec) -> str:
    """The answer's text, which may end inside of its last token: a stop string began there.

    Args:
        result: an answer, not a failure.
        codec: of its tokens.
    """
    return codec.decode(result.token_ids)[: result.num_chars]


def cutoff_of(result: SampleResult, max_new_tokens: int) -> Cutoff:
    """Which of the engine's limits cut an answer off: the request's own, else the context.

    Args:
        result: an answer, not a failure.
        max_new_tokens: of its request.
    """
    if result.finish_reason is FinishReason.STOP:
        return Cutoff.NONE
    return Cutoff.TOKENS if len(result.token_ids) >= max_new_tokens else Cutoff.CONTEXT


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine was opened.

    Args:
        tokens_generated: sampled tokens, end-of-sequence tokens included.
        tokens_prefilled: prompt and prefix tokens computed.
        tokens_reused: prompt and prefix tokens taken from the KV cache instead.
        busy_s: seconds inside the engine.
        slot_steps: decode steps times rows that held a request.
        capacity_steps: decode steps times rows there are; 1 - slot_steps / capacity_steps is the idle share.
        num_errors: requests that failed, each try of its own; counted by who asks, see `redraw`.
        num_redrawn: requests that failed and were answered when they were asked again.
    """

    tokens_generated: int = 0
    tokens_prefilled: int = 0
    tokens_reused: int = 0
    busy_s: float = 0.0
    slot_steps: int = 0
    capacity_steps: int = 0
    num_errors: int = 0
    num_redrawn: int = 0


class Codec(Protocol):
    """Text to token ids and back, with the chat template of the policy's own tokenizer.

    One that knows what bytes its tokens are may have a `spelling`, see `codec.Spelling`, which finds the places of
    tokens in a text faster than decoding can. One whose answers end by more than the model's own tokens has a `stop`,
    see `prompting.stop_rule`.
    """

    def encode_prompt(self, question: str) -> Int32Array:
        """`[P]` int32: the question as a user's message, up to where the assistant's answer starts."""
        ...

    def encode(self, text: str) -> Int32Array:
        """Plain text to ids, no special tokens."""
        ...

    def decode(self, token_ids: Int32Array) -> str:
        """Ids to text, special tokens left out."""
        ...


@runtime_checkable
class Policy(Protocol):
    """An engine with one policy loaded.

    Attributes:
        policy_id: recorded with everything that is sampled.
        codec: how whoever asks makes prompts and reads answers; may be replaced by one of the same tokenizer with
            another instruction.
        capacity: requests that are sampled at once.
        batch_invariant: whether a result is a function of its request alone.
        stats: counters, see `EngineStats`.
    """

    policy_id: str
    codec: Codec
    capacity: int
    batch_invariant: bool
    stats: EngineStats

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        """Queues requests; never blocks on the engine."""
        ...

    def poll(self) -> list[SampleResult]:
        """Runs the engine until at least one request has finished; [] when none is in flight.

        It may gather several as long as queued requests keep the engine full.
        """
        ...

    @property
    def num_in_flight(self) -> int:
        """Requests submitted and not yet returned by `poll`."""
        ...

    def close(self) -> None:
        """Frees the engine's memory; the object is not used afterwards."""
        ...


@runtime_checkable
class Reloadable(Policy, Protocol):
    """An engine that outlives the policy it samples."""

    def load(self, model_dir: Path | str, *, adapter_dir: Path | None, policy_id: str) -> None:
        """Goes on as another policy, without a restart; also takes back what `free_for_training` gave.

        Args:
            model_dir: the same architecture with the same tokenizer.
            adapter_dir: PEFT adapter, or None.
            policy_id: recorded with everything that is sampled from now on.

        Raises:
            ConfigError: the model or adapter cannot be used; one line says why.
            RuntimeError: requests are in flight, or the engine still answers with the old weights.
        """
        ...

    def free_for_training(self) -> None:
        """Frees the accelerator's memory until the next `load`.

        Raises:
            RuntimeError: requests are in flight.
        """
        ...


def sample_all(policy: Policy, requests: Sequence[SampleRequest]) -> dict[str, SampleResult]:
    """Submits everything at once and returns each result by request id, failures included; see `redraw.draw_all`."""
    policy.submit(requests)
    results: dict[str, SampleResult] = {}
    while policy.num_in_flight:
        for result in policy.poll():
            results[result.request_id] = result
    return results
