"""The server backend: a model that runs elsewhere, behind any number of `vllm serve`, as a `Policy`.

One idea: the search keeps ``policy.max_batch`` requests in flight over all endpoints together, as token ids in and
token ids out; which endpoint answers a request is no part of its result, nor is how often it had to be asked.

The tokenizer is local; only adapters can be given to a server over its API, and only from a folder that it sees too.
They stay loaded there, since others may sample them.

Departures from the transformers backend: those of `vllm_policy`, and `EngineStats` counts microseconds in flight for
decode steps, which a server does not tell.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, GenerationConfig

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.policy.adapters import Weights
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.loading import load_tokenizer
from pipeline_lib.policy.model_folders import model_folder
from pipeline_lib.policy.protocol import EngineStats, FinishReason, SampleRequest, SampleResult
from pipeline_lib.policy.server_engine.endpoint import Completion, Target
from pipeline_lib.policy.server_engine.endpoint_pool import EndpointPool, Outcome

REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
PROBE_TOKENS = 64
SAME_TEXT = "One step: 12 + 30 = 42.\nTherefore:\n\n#### 42"
MICROSECONDS = 1e6


class ServerPolicy:
    """A served model, with or without an adapter, behind `protocol.Policy`.

    Args:
        model_dir: the base, for its tokenizer and the digest of its weights.
        adapter_dir: PEFT adapter, or None.
        policy_id: recorded with everything that is sampled.
        config: context, requests in flight, and the group `server`.
        instruction: appended to every question by `codec`.
        api_key: sent to every endpoint; None sends none.

    Raises:
        ConfigError: no endpoint answers, or one serves something else; one line says what to do.
    """

    batch_invariant = False

    def __init__(
        self,
        model_dir: Path | str,
        *,
        adapter_dir: Path | None = None,
        policy_id: str,
        config: PolicyConfig,
        instruction: str,
        api_key: str | None = None,
    ) -> None:
        if not config.server.urls:
            raise ConfigError("policy.server.urls: names no endpoint; start `vllm serve` and name its address")
        self._config = config
        tokenizer = load_tokenizer(model_dir, config)
        self.codec = TokenizerCodec(tokenizer, instruction)
        self.capacity = config.max_batch
        self.stats = EngineStats()
        self._context, self._vocab_size, end_ids = _limits(model_dir, config)
        self._end_ids = sorted({*end_ids, tokenizer.eos_token_id} - {None})
        self._queue: deque[SampleRequest] = deque()
        self._running: dict[str, int] = {}
        self._done: list[SampleResult] = []
        self._ids_in_flight: set[str] = set()
        self._pool = EndpointPool(config, api_key)
        try:
            self.load(model_dir, adapter_dir=adapter_dir, policy_id=policy_id)
        except BaseException:
            self._pool.close()
            raise

    @property
    def num_in_flight(self) -> int:
        return len(self._ids_in_flight)

    def load(self, model_dir: Path | str, *, adapter_dir: Path | None, policy_id: str) -> None:
        self._refuse_in_flight()
        if model_dir != model_folder(self._config.model, self._config.revision, weights=False):
            raise ConfigError(
                f"policy.backend=server cannot give a server the full weights in {model_dir}: its API takes adapters; "
                "use policy.backend=vllm, or serve that folder and name it as policy.model"
            )
        self._pool.use(self._target(Weights(model_dir, adapter_dir and adapter_dir.resolve())))
        self.policy_id = policy_id

    def rest(self) -> None:
        """Nothing: the memory is the server's."""
        self._refuse_in_flight()

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        for request in requests:
            if request.request_id in self._ids_in_flight:
                raise ValueError(f"request {request.request_id!r} is in flight already; request ids must be unique")
            self._ids_in_flight.add(request.request_id)
            reason = request.refusal(context=self._context, vocab_size=self._vocab_size)
            if reason is None:
                self._queue.append(request)
            else:
                self._done.append(_result(request.request_id, [], reason))
        self._fill()

    def poll(self) -> list[SampleResult]:
        if not self._done and self._ids_in_flight:
            self._collect(self._wait())
        while not self._pool.finished.empty():
            self._collect(self._pool.finished.get())
        self._fill()
        results, self._done = self._done, []
        self._ids_in_flight.difference_update(result.request_id for result in results)
        return results

    def close(self) -> None:
        self._pool.close()
        for collection in (self._queue, self._running, self._done, self._ids_in_flight):
            collection.clear()

    def _target(self, weights: Weights) -> Target:
        rng, revision = np.random.default_rng(0), self._config.revision
        return Target(
            weights=weights,
            base_digest=Weights(weights.model_dir).digest(revision),
            digest=weights.digest(revision),
            base_name=self._config.server.model_name,
            context=self._context,
            text=SAME_TEXT,
            text_ids=self.codec.encode(SAME_TEXT).tolist(),
            probe_ids=rng.integers(0, self._vocab_size, min(PROBE_TOKENS, self._context - 1)).tolist(),
        )

    def _refuse_in_flight(self) -> None:
        if self._ids_in_flight:
            raise RuntimeError(f"{self.num_in_flight} requests are in flight; poll them before the weights change")

    def _fill(self) -> None:
        while self._queue and len(self._running) < self.capacity:
            self._start(self._queue.popleft())

    def _start(self, request: SampleRequest) -> None:
        params, ids = request.params, request.token_ids.tolist()
        body: dict[str, Any] = {
            "prompt": ids,
            "max_tokens": min(params.max_new_tokens, self._context - len(ids)),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": request.seed,
            "stop_token_ids": self._end_ids,
            "return_token_ids": True,
        }
        self._running[request.request_id] = len(ids)
        self._pool.start(request.request_id, body)

    def _wait(self) -> tuple[str, Outcome] | Exception:
        started, stats = time.perf_counter(), self.stats
        item = self._pool.finished.get()
        seconds = time.perf_counter() - started
        stats.busy_s += seconds
        stats.slot_steps += round(seconds * MICROSECONDS * len(self._running))
        stats.capacity_steps += round(seconds * MICROSECONDS * self.capacity)
        return item

    def _collect(self, item: tuple[str, Outcome] | Exception) -> None:
        """Turns an outcome into a result; the token that ended an answer is not part of it."""
        if isinstance(item, Exception):
            raise item
        request_id, outcome = item
        num_prompt = self._running.pop(request_id)
        if not isinstance(outcome, Completion):  # what servers do not take is a failed request, not the search's end
            self._done.append(_result(request_id, [], FinishReason.ERROR))
            return
        ids, reason = outcome.token_ids, REASONS.get(outcome.finish_reason, FinishReason.ERROR)
        self.stats.tokens_generated += len(ids)
        self.stats.tokens_reused += outcome.num_cached
        self.stats.tokens_prefilled += num_prompt - outcome.num_cached
        ended = reason is FinishReason.STOP and ids and ids[-1] in self._end_ids
        self._done.append(_result(request_id, ids[:-1] if ended else ids, reason))


def _result(request_id: str, token_ids: list[int], reason: FinishReason) -> SampleResult:
    return SampleResult(request_id, np.array(token_ids, dtype=np.int32), reason)


def _limits(model_dir: Path | str, config: PolicyConfig) -> tuple[int, int, set[int | None]]:
    """The longest context in use, the size of the vocabulary, and the ids that end an answer by generation config."""
    revision = config.revision or "main"
    try:
        model = AutoConfig.from_pretrained(model_dir, revision=revision).get_text_config()
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"policy.model={model_dir}: cannot load its configuration: {first}") from error
    try:
        ids = GenerationConfig.from_pretrained(model_dir, revision=revision).eos_token_id
    except OSError:  # a model need not have one
        ids = None
    longest = getattr(model, "max_position_embeddings", None) or config.max_context_tokens
    end_ids = set(ids) if isinstance(ids, list) else {ids}
    return min(config.max_context_tokens, longest), int(model.vocab_size), end_ids
