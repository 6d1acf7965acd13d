"""The vLLM backend: any model that vLLM serves as a `Policy`, on GPUs or, with its CPU build, without.

The scheduler of the search drives vLLM's own step loop. Requests enter between any two passes, finished ones leave at
once, and there is neither a barrier nor a server in between; token ids go in and come out.

Departures from the transformers backend:

1. A request's tokens depend a little on its company, as vLLM's sums do: ``batch_invariant`` is False.
2. On a GPU only whole blocks of ``policy.vllm.block_tokens`` tokens are reused from the cache; on a CPU `cache_shelf`
   adds the rest.
3. On a GPU adapters stay beside the weights instead of being merged in: that is what lets them change in a moment. On a
   CPU vLLM computes them so slowly that an engine of their own pays; ``policy.vllm.merge_adapters`` decides.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.config import PolicyConfig
from pipeline_lib.policy.adapters import Weights
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.end_tokens import declared_end_ids, end_token_ids, read_answer
from pipeline_lib.policy.in_flight import InFlight
from pipeline_lib.policy.prompting.stop_rule import StopWatch, watch_for
from pipeline_lib.policy.protocol import Codec, EngineStats, FinishReason, SampleRequest, SampleResult
from pipeline_lib.policy.vllm_engine.llm_engine import VllmEngine


class VllmPolicy:
    """A model folder or hub name, with or without an adapter, behind `protocol.Policy`.

    Args:
        model_dir: a causal language model in safetensors.
        adapter_dir: PEFT adapter, or None.
        policy_id: recorded with everything that is sampled.
        config: dtype, rows, context and the group `vllm`.
        codec: of the model's own tokenizer.
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
        codec: TokenizerCodec,
        lora_rank: int = 0,
    ) -> None:
        self.policy_id = policy_id
        self.codec: Codec = codec
        self.capacity = config.max_batch
        self.stats = EngineStats()
        self._engine = VllmEngine(Weights(model_dir, adapter_dir), config, lora_rank=lora_rank)
        declared = declared_end_ids(model_dir, config.revision if isinstance(model_dir, str) else None)
        self._end_ids = end_token_ids(declared, codec.tokenizer)
        self._in_flight = InFlight()
        self._running: dict[str, StopWatch | None] = {}

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def load(self, model_dir: Path | str, *, adapter_dir: Path | None, policy_id: str) -> None:
        self._in_flight.refuse_any()
        self._engine.load(Weights(model_dir, adapter_dir))
        self.policy_id = policy_id

    def free_for_training(self) -> None:
        self._in_flight.refuse_any()
        self._engine.free_for_training()

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        self._in_flight.submit(requests, self._engine.limits)

    def poll(self) -> list[SampleResult]:
        start = time.perf_counter()
        while self._in_flight.needs_pass(self.capacity):
            self._step()
        self.stats.busy_s += time.perf_counter() - start
        return self._in_flight.hand_over()

    def close(self) -> None:
        self._engine.abort(list(self._running))
        self._running.clear()
        self._in_flight.clear()
        self._engine.close()

    def _step(self) -> None:
        """Hands over as many requests as there are free rows, and lets the engine make one pass."""
        while self._in_flight.waiting and len(self._running) < self.capacity:
            self._start(self._in_flight.waiting.popleft())
        if not self._running:
            return
        self.stats.slot_steps += len(self._running)
        self.stats.capacity_steps += self.capacity
        for output in self._engine.step():
            self._collect(output)

    def _start(self, request: SampleRequest) -> None:
        params, ids, watch = request.params, request.token_ids.tolist(), watch_for(self.codec, request)
        is_taken = self._engine.add(
            request.request_id,
            ids,
            is_watched=watch is not None,
            max_tokens=min(params.max_new_tokens, self._engine.limits.context - len(ids)),
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            seed=request.seed,
            stop_token_ids=self._end_ids,
            logprobs=0 if params.logprobs else None,  # of the sampled token, and of none besides
        )
        if is_taken:
            self._running[request.request_id] = watch
        else:  # what vLLM does not take is a failed request, not the end of the search
            self._in_flight.finish(request.request_id, (), FinishReason.ERROR)

    def _collect(self, output: Any) -> None:
        """Turns vLLM's output into a result, unless its answer goes on; one that the stop rule ends is taken back."""
        completion, watch = output.outputs[0], self._running[output.request_id]
        sampled, stop_reason = list(completion.token_ids), completion.stop_reason
        answer = read_answer(sampled, completion.finish_reason, self._end_ids, stop_reason) if output.finished else None
        end = None if watch is None else watch.look(sampled if answer is None else answer[0])
        if answer is None and end is None:
            return
        if answer is None:
            self._engine.abort([output.request_id])
        num_cached = output.num_cached_tokens or 0
        del self._running[output.request_id]
        self.stats.tokens_generated += len(sampled)
        self.stats.tokens_reused += num_cached
        self.stats.tokens_prefilled += len(output.prompt_token_ids) - num_cached
        rows = completion.logprobs
        logprobs = None if rows is None else [row[token].logprob for row, token in zip(rows, sampled, strict=True)]
        if end is not None:
            self._in_flight.stop(output.request_id, sampled, end, logprobs=logprobs)
        elif answer is not None:
            self._in_flight.finish(output.request_id, *answer, logprobs=logprobs)
