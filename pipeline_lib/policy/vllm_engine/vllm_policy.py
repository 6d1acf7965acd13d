"""The vLLM backend: any model that vLLM serves as a `Policy`, on GPUs or, with its CPU build, without.

One idea: the scheduler of the search drives vLLM's own step loop. Requests enter between any two passes, finished
ones leave at once, and there is neither a barrier nor a server in between; token ids go in and come out.

Departures from the transformers backend:

1. A request's tokens depend a little on its company, as vLLM's sums do: ``batch_invariant`` is False.
2. On a GPU only whole blocks of ``policy.vllm.block_tokens`` tokens are reused from the cache; on a CPU `vllm_shelf`
   adds the rest.
3. Adapters stay beside the weights instead of being merged in: that is what lets them change in a moment.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.config import PolicyConfig
from pipeline_lib.policy.adapters import Weights
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.loading import load_tokenizer
from pipeline_lib.policy.protocol import EngineStats, FinishReason, SampleRequest, SampleResult
from pipeline_lib.policy.vllm_engine.engine import VllmEngine

GATHERED_SHARE = 4  # one finished request for every four rows is handed over at once, while others wait for a row
REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class VllmPolicy:
    """A model folder or hub name, with or without an adapter, behind `protocol.Policy`.

    Args:
        model_dir: a causal language model in safetensors with a chat template.
        adapter_dir: PEFT adapter, or None.
        policy_id: recorded with everything that is sampled.
        config: dtype, rows, context and the group `vllm`.
        instruction: appended to every question by `codec`.
        lora_rank: rank of the adapters that `load` will bring; 0 starts an engine without room for any.

    Raises:
        ConfigError: vLLM is missing, or cannot use the model, the adapter or an option; one line says why.
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
        lora_rank: int = 0,
    ) -> None:
        tokenizer = load_tokenizer(model_dir, config)
        self.codec = TokenizerCodec(tokenizer, instruction)
        self.policy_id = policy_id
        self.capacity = config.max_batch
        self.stats = EngineStats()
        self._engine = VllmEngine(Weights(model_dir, adapter_dir), config, lora_rank=lora_rank)
        end_ids = {*self._engine.end_token_ids, tokenizer.eos_token_id} - {None}
        self._end_ids = sorted(int(i) for i in end_ids)
        self._queue: deque[SampleRequest] = deque()
        self._running: set[str] = set()
        self._done: list[SampleResult] = []
        self._ids_in_flight: set[str] = set()

    @property
    def num_in_flight(self) -> int:
        return len(self._ids_in_flight)

    def load(self, model_dir: Path | str, *, adapter_dir: Path | None, policy_id: str) -> None:
        self._refuse_in_flight()
        self._engine.load(Weights(model_dir, adapter_dir))
        self.policy_id = policy_id

    def rest(self) -> None:
        self._refuse_in_flight()
        self._engine.rest()

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        for request in requests:
            if request.request_id in self._ids_in_flight:
                raise ValueError(f"request {request.request_id!r} is in flight already; request ids must be unique")
            self._ids_in_flight.add(request.request_id)
            reason = request.refusal(context=self._engine.context, vocab_size=self._engine.vocab_size)
            if reason is None:
                self._queue.append(request)
            else:
                self._finish(request.request_id, [], reason)

    def poll(self) -> list[SampleResult]:
        start = time.perf_counter()
        enough = self.capacity // GATHERED_SHARE
        while self._ids_in_flight and (not self._done or (self._queue and len(self._done) < enough)):
            self._step()
        self.stats.busy_s += time.perf_counter() - start
        results, self._done = self._done, []
        self._ids_in_flight.difference_update(result.request_id for result in results)
        return results

    def close(self) -> None:
        self._engine.abort(list(self._running))
        for collection in (self._queue, self._running, self._done, self._ids_in_flight):
            collection.clear()
        self._engine.close()

    def _refuse_in_flight(self) -> None:
        if self._ids_in_flight:
            raise RuntimeError(f"{self.num_in_flight} requests are in flight; poll them before the weights change")

    def _step(self) -> None:
        """Hands over as many requests as there are free rows, and lets the engine make one pass."""
        while self._queue and len(self._running) < self.capacity:
            self._start(self._queue.popleft())
        if not self._running:
            return
        self.stats.slot_steps += len(self._running)
        self.stats.capacity_steps += self.capacity
        for output in self._engine.step():
            if output.finished:
                self._collect(output)

    def _start(self, request: SampleRequest) -> None:
        params, ids = request.params, request.token_ids.tolist()
        is_taken = self._engine.add(
            request.request_id,
            ids,
            max_tokens=min(params.max_new_tokens, self._engine.context - len(ids)),
            temperature=params.temperature,
            top_p=params.top_p,
            seed=request.seed,
            stop_token_ids=self._end_ids,
        )
        if is_taken:
            self._running.add(request.request_id)
        else:  # what vLLM does not take is a failed request, not the end of the search
            self._finish(request.request_id, [], FinishReason.ERROR)

    def _collect(self, output: Any) -> None:
        """Turns vLLM's output into a result; the token that ended an answer is not part of it."""
        completion = output.outputs[0]
        ids = list(completion.token_ids)
        self._running.discard(output.request_id)
        self.stats.tokens_generated += len(ids)
        self.stats.tokens_reused += output.num_cached_tokens or 0
        self.stats.tokens_prefilled += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
        reason = REASONS.get(completion.finish_reason, FinishReason.ERROR)
        ended = reason is FinishReason.STOP and ids and ids[-1] in self._end_ids
        self._finish(output.request_id, ids[:-1] if ended else ids, reason)

    def _finish(self, request_id: str, token_ids: list[int], reason: FinishReason) -> None:
        self._done.append(SampleResult(request_id, np.array(token_ids, dtype=np.int32), reason))
