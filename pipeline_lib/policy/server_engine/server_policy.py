"""The server backend: a model that runs elsewhere, behind any number of `vllm serve`, as a `Policy`.

The search keeps ``policy.max_batch`` requests in flight over all endpoints together, as token ids in and token ids out.
Which endpoint answers a request is no part of its result, nor is how often it had to be asked.

The tokenizer is local; only adapters can be given to a server over its API, and only from a folder that it sees too.
They stay loaded there, since others may sample them.

Departures from the transformers backend: those of `vllm_policy`; `EngineStats` counts microseconds in flight for
decode steps, which a server does not tell; and servers know stop strings alone, so an answer that its marked line ends
is sampled on to its own end, or the next stop, and cut afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.config.one_line import first_line
from pipeline_lib.policy.adapters import Weights
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.end_tokens import declared_end_ids, end_token_ids, read_answer
from pipeline_lib.policy.in_flight import InFlight, ModelLimits
from pipeline_lib.policy.model_folders import model_commit, model_folder
from pipeline_lib.policy.prompting.stop_rule import AnswerEnd, end_of_answer, rule_of
from pipeline_lib.policy.protocol import Codec, EngineStats, FinishReason, SampleRequest, SampleResult
from pipeline_lib.policy.server_engine.endpoint import Completion, Target
from pipeline_lib.policy.server_engine.endpoint_pool import EndpointPool, Outcome

PROBE_TOKENS = 64
TOKENIZER_TEST = "One step: 12 + 30 = 42.\nTherefore:\n\n#### 42"
MICROSECONDS = 1e6


class ServerPolicy:
    """A served model, with or without an adapter, behind `protocol.Policy`.

    Args:
        model_dir: the base, for its tokenizer and the digest of its weights.
        adapter_dir: PEFT adapter, or None.
        policy_id: recorded with everything that is sampled.
        config: context, requests in flight, and the group `server`.
        codec: of the base's own tokenizer; the servers' must give the same tokens.
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
        codec: TokenizerCodec,
        api_key: str | None = None,
    ) -> None:
        if not config.server.urls:
            raise ConfigError("policy.server.urls: names no endpoint; start `vllm serve` and name its address")
        self._config = config
        self.codec: Codec = codec
        self.capacity = config.max_batch
        self.stats = EngineStats()
        self._limits = _limits(model_dir, config)
        self._end_ids = end_token_ids(declared_end_ids(model_dir, config.revision), codec.tokenizer)
        self._in_flight = InFlight()
        self._running: dict[str, SampleRequest] = {}  # those that an endpoint has
        self._pool = EndpointPool(config, api_key)
        try:
            self.load(model_dir, adapter_dir=adapter_dir, policy_id=policy_id)
        except BaseException:
            self._pool.close()
            raise

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def load(self, model_dir: Path | str, *, adapter_dir: Path | None, policy_id: str) -> None:
        self._in_flight.refuse_any()
        pinned = model_commit(self._config.model, self._config.revision) or self._config.revision
        if model_dir != model_folder(self._config.model, pinned, weights=False):
            raise ConfigError(
                f"policy.backend=server cannot give a server the full weights in {model_dir}: its API takes adapters; "
                "use policy.backend=vllm, or serve that folder and name it as policy.model"
            )
        self._pool.use(self._target(Weights(model_dir, adapter_dir and adapter_dir.resolve())))
        self.policy_id = policy_id

    def free_for_training(self) -> None:
        """Nothing: the memory is the server's."""
        self._in_flight.refuse_any()

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        self._in_flight.submit(requests, self._limits)
        self._fill()

    def poll(self) -> list[SampleResult]:
        if len(self._in_flight) and not self._in_flight.has_results:
            self._collect(self._wait())
        while not self._pool.finished.empty():
            self._collect(self._pool.finished.get())
        self._fill()
        return self._in_flight.hand_over()

    def close(self) -> None:
        self._pool.close()
        self._in_flight.clear()
        self._running.clear()

    def _target(self, weights: Weights) -> Target:
        rng, revision = np.random.default_rng(0), self._config.revision
        return Target(
            weights=weights,
            base_digest=Weights(weights.model_dir).digest(revision),
            digest=weights.digest(revision),
            base_name=self._config.server.model_name,
            context=self._limits.context,
            text=TOKENIZER_TEST,
            text_ids=self.codec.encode(TOKENIZER_TEST).tolist(),
            probe_ids=rng.integers(0, self._limits.vocab_size, min(PROBE_TOKENS, self._limits.context - 1)).tolist(),
        )

    def _fill(self) -> None:
        while self._in_flight.waiting and len(self._running) < self.capacity:
            self._start(self._in_flight.waiting.popleft())

    def _start(self, request: SampleRequest) -> None:
        params, ids = request.params, request.token_ids.tolist()
        body: dict[str, Any] = {
            "prompt": ids,
            "max_tokens": min(params.max_new_tokens, self._limits.context - len(ids)),
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "seed": request.seed,
            "stop_token_ids": self._end_ids,
            "return_token_ids": True,
        }
        if params.logprobs:
            body["logprobs"] = 0  # of the sampled token, and of none besides
        if strings := rule_of(self.codec).strings:
            body["stop"] = list(strings)
        self._running[request.request_id] = request
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
        """Turns an outcome into a result, or raises the exception that ends all requests."""
        if isinstance(item, Exception):
            raise item
        request_id, outcome = item
        request = self._running.pop(request_id)
        if not isinstance(outcome, Completion):  # what servers do not take is a failed request, not the search's end
            self._in_flight.finish(request_id, (), FinishReason.ERROR)
            return
        self.stats.tokens_generated += len(outcome.token_ids)
        self.stats.tokens_reused += outcome.num_cached
        self.stats.tokens_prefilled += len(request.token_ids) - outcome.num_cached
        answer = read_answer(outcome.token_ids, outcome.finish_reason, self._end_ids, outcome.stop_reason)
        end = self._end_by_rule(request, answer[0], outcome.stop_reason)
        if end is not None:
            self._in_flight.stop(request_id, answer[0], end, logprobs=outcome.logprobs)
        else:
            self._in_flight.finish(request_id, *answer, logprobs=outcome.logprobs)

    def _end_by_rule(self, request: SampleRequest, token_ids: Sequence[int], stop_reason: object) -> AnswerEnd | None:
        """Where an answer ended by the stop rule, or where a server says that it did; None where it did not."""
        rule = rule_of(self.codec)
        end = end_of_answer(token_ids, request, self.codec, rule) if rule else None
        if end is None and stop_reason in rule.strings:
            return AnswerEnd(len(token_ids), len(self.codec.decode(np.array(token_ids, dtype=np.int32))))
        return end


def _limits(model_dir: Path | str, config: PolicyConfig) -> ModelLimits:
    """The longest context in use, and the size of the vocabulary."""
    try:
        revision, trusted = config.revision or "main", config.trust_remote_code
        layout = AutoConfig.from_pretrained(model_dir, revision=revision, trust_remote_code=trusted)
        model = layout.get_text_config()
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.model={model_dir}: cannot load its configuration: {first_line(error)}") from error
    longest = getattr(model, "max_position_embeddings", None) or config.max_context_tokens
    return ModelLimits(min(config.max_context_tokens, longest), int(model.vocab_size))
