"""The transformers backend: any Hugging Face causal language model as a `Policy`, on a CPU or on CUDA.

One idea: continuous refill with one forward pass per step. Each pass holds one row per running
request and, in front, the prompt tokens of those that have just entered; a request that shares a
beginning with another one, running or finished, copies keys and values instead of computing them.

Departures from how an inference server does it:

1. Storage is one row per request, not pages: simple, and fast on a CPU, at the price of memory.
2. The last prompt token goes through the decoding row, so there is one place where tokens are drawn.
3. Shapes are chosen so that on a CPU in float32 a request's tokens do not depend on its company; when
   the engine opens, it measures whether that holds on this machine and says so in `batch_invariant`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline_lib.config import PolicyConfig
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.loading import end_token_ids, load_model, load_tokenizer, resolve_device
from pipeline_lib.policy.protocol import EngineStats, FinishReason, SampleRequest, SampleResult
from pipeline_lib.policy.transformers_engine.kv_cache import ROW_MULTIPLE, RowCopy, round_up
from pipeline_lib.policy.transformers_engine.model_runner import ModelRunner, Rows, is_batch_invariant
from pipeline_lib.policy.transformers_engine.sampling import draw_tokens
from pipeline_lib.policy.transformers_engine.slots import MIN_RETAINED, IntArray, SlotTable

PREFILL_TOKENS = 512  # per pass: bounds memory, and how long running requests wait for entering ones
GATHERED_SHARE = 4  # one finished request for every four slots is handed over at once, while others wait for a slot
CATCH_UP_TOKENS = 6  # so few prompt tokens go one by one through the decoding row: cheaper than rows of their own
WORTH_WAITING = 16  # tokens: a request waits a step for another one's prefill if that saves so many


class TransformersPolicy:
    """A model folder, with or without an adapter, behind `protocol.Policy`.

    Args:
        model_dir: folder or hub name of a causal language model in safetensors with a chat template.
        adapter_dir: PEFT adapter to merge in, or None.
        policy_id: recorded with everything that is sampled.
        config: device, dtype, rows, context and threads.
        instruction: appended to every question by `codec`.

    Raises:
        ConfigError: the model or adapter cannot be used; one line says why.
    """

    def __init__(
        self,
        model_dir: Path | str,
        *,
        adapter_dir: Path | str | None = None,
        policy_id: str,
        config: PolicyConfig,
        instruction: str,
    ) -> None:
        device = resolve_device(config.device)
        if device.type == "cpu":
            torch.set_num_threads(config.num_threads)
        self.policy_id = policy_id
        self.capacity = config.max_batch
        self.stats = EngineStats()
        model: Any = load_model(model_dir, adapter_dir, config, device)
        tokenizer = load_tokenizer(model_dir, config)
        self.codec = TokenizerCodec(tokenizer, instruction)
        limit = getattr(model.config, "max_position_embeddings", None) or config.max_context_tokens
        self.context = min(config.max_context_tokens, limit)
        num_slots = round_up(config.max_batch, ROW_MULTIPLE)
        self._table = SlotTable(num_slots, max(config.max_batch, MIN_RETAINED), self.context)
        self._runner = ModelRunner(model, self._table.num_rows, device)
        self.batch_invariant = is_batch_invariant(model, device)
        self._end_ids = np.array(sorted(end_token_ids(model, tokenizer)), dtype=np.int64)
        self._vocab_size = int(model.get_input_embeddings().num_embeddings)
        self._queue: deque[SampleRequest] = deque()
        self._done: list[SampleResult] = []
        self._ids_in_flight: set[str] = set()

    @property
    def num_in_flight(self) -> int:
        return len(self._ids_in_flight)

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        for request in requests:
            if request.request_id in self._ids_in_flight:
                raise ValueError(f"request {request.request_id!r} is in flight already; request ids must be unique")
            self._ids_in_flight.add(request.request_id)
            reason = request.refusal(context=self.context, vocab_size=self._vocab_size)
            if reason is None:
                self._queue.append(request)
            else:
                self._done.append(SampleResult(request.request_id, np.zeros(0, dtype=np.int32), reason))

    def poll(self) -> list[SampleResult]:
        start = time.perf_counter()
        enough = self.capacity // GATHERED_SHARE
        with torch.inference_mode():
            # Whoever reads results finds cold processor caches after a pass: a few at a time cost half as much.
            while self._ids_in_flight and (not self._done or (self._queue and len(self._done) < enough)):
                self._step()
        self.stats.busy_s += time.perf_counter() - start
        results, self._done = self._done, []
        self._ids_in_flight.difference_update(result.request_id for result in results)
        return results

    def close(self) -> None:
        self._queue.clear()
        self._ids_in_flight.clear()
        self._runner.close()

    def _step(self) -> None:
        """Admits, prefills, decodes one token per ready slot, and collects what has finished."""
        self._admit()
        rows, ready = self._plan_rows()
        logits = self._runner.forward(rows)
        tokens = self._draw(logits, ready)
        self.stats.slot_steps += len(ready)
        self.stats.capacity_steps += self.capacity
        self.stats.tokens_generated += len(ready)
        self._append(ready, tokens)
        if not self._queue:
            self._compact()

    def _admit(self) -> None:
        """Moves queued requests into free slots; those that gain by another one's prefill wait for it."""
        if not self._queue:
            return
        table = self._table
        waiting: list[SampleRequest] = []
        copies: list[RowCopy] = []
        free = deque(table.free_slots(self.capacity).tolist())
        most_waiting = len(free)  # with no bound, a long queue would be searched for ever new prompts
        while free and self._queue and len(waiting) < most_waiting:
            request = self._queue.popleft()
            match = table.match(request.token_ids)
            if match.promised >= match.length + WORTH_WAITING:
                waiting.append(request)
                continue
            slot = free.popleft()
            table.touch(match.row)  # so that it is not the row that the slot's old content goes to
            self._vacate(slot, copies)
            if match.length:
                copies.append(RowCopy(match.row, slot, match.length))
            table.admit(slot, request, match.length)
            self.stats.tokens_reused += match.length
            self.stats.tokens_prefilled += len(request.token_ids) - match.length
        self._queue.extendleft(reversed(waiting))
        self._runner.cache.copy_rows(copies)

    def _vacate(self, slot: int, copies: list[RowCopy]) -> None:
        """Lets a retained row take over what the free `slot` still holds."""
        retained = self._table.vacate(slot)
        if retained is not None:
            copies.append(RowCopy(slot, retained, int(self._table.computed[retained])))

    def _plan_rows(self) -> tuple[Rows, IntArray]:
        """Token rows of this pass, prefill first, and the slots that decode in it."""
        table = self._table
        pending = np.maximum(table.lengths[: table.num_slots] - 1 - table.computed[: table.num_slots], 0)
        catching_up = np.flatnonzero((pending > 0) & (pending <= CATCH_UP_TOKENS))
        entering = np.flatnonzero(pending > CATCH_UP_TOKENS)
        budget = np.cumsum(pending[entering])
        counts = np.clip(PREFILL_TOKENS - (budget - pending[entering]), 0, pending[entering])
        prefill_rows = np.repeat(entering, counts)
        within = np.arange(len(prefill_rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        prefill_positions = table.computed[prefill_rows] + within
        table.computed[entering] += counts
        ready = np.flatnonzero(
            table.occupied & (table.computed[: table.num_slots] == table.lengths[: table.num_slots] - 1)
        )
        decoding = np.concatenate([ready, catching_up])
        num_prefill = round_up(len(prefill_rows), ROW_MULTIPLE)
        num_decode = round_up(int(decoding.max(initial=0)) + 1, ROW_MULTIPLE)
        rows = Rows.padding(num_prefill, num_decode, table.padding_row)
        rows.fill(np.arange(len(prefill_rows)), prefill_rows, prefill_positions, table.tokens)
        rows.fill(num_prefill + decoding, decoding, table.computed[decoding], table.tokens)
        table.computed[decoding] += 1
        return rows, ready

    def _draw(self, logits: torch.Tensor, ready: IntArray) -> IntArray:
        """`[len(ready)]` drawn ids, -1 where the logits were not finite."""
        table, num_rows = self._table, len(logits)
        index = np.maximum(table.lengths[:num_rows] - table.prompt_lengths[:num_rows], 0)
        uniforms = table.uniforms[np.arange(num_rows), np.minimum(index, table.uniforms.shape[1] - 1)]
        arrays = (uniforms, table.temperatures[:num_rows], table.top_ps[:num_rows])
        inputs = (torch.from_numpy(array).to(logits.device) for array in arrays)
        drawn: IntArray = draw_tokens(logits, *inputs).cpu().numpy()
        return drawn[ready]

    def _append(self, ready: IntArray, tokens: IntArray) -> None:
        """Adds the drawn tokens to their rows and turns finished requests into results."""
        table = self._table
        broken, ended = tokens < 0, np.isin(tokens, self._end_ids)
        going = ready[~(broken | ended)]
        table.tokens[going, table.lengths[going]] = tokens[~(broken | ended)]
        table.lengths[going] += 1
        over = broken | ended | (table.lengths[ready] >= table.limits[ready])
        if not over.any():
            return
        for slot, is_broken, is_ended in zip(ready[over], broken[over], ended[over], strict=True):
            reason = FinishReason.ERROR if is_broken else FinishReason.STOP if is_ended else FinishReason.LENGTH
            request = table.requests[slot]
            assert request is not None
            new_ids = table.tokens[slot, table.prompt_lengths[slot] : table.lengths[slot]].copy()
            self._done.append(SampleResult(request.request_id, new_ids, reason))
        table.finish(ready[over])
        if broken.any():
            self._runner.clear_rows(ready[broken])
            table.forget(ready[broken])

    def _compact(self) -> None:
        """Moves the last running requests forward once that makes the passes shorter: nobody will fill the gaps."""
        running = np.flatnonzero(self._table.occupied)
        num_rows = round_up(len(running), ROW_MULTIPLE)
        sources = running[running >= num_rows]
        if len(sources):
            targets = self._table.free_slots(num_rows)[: len(sources)]
            copies: list[RowCopy] = []
            for target in targets.tolist():
                self._vacate(target, copies)
            self._table.move(sources, targets)
            lengths = self._table.computed[targets]
            self._runner.cache.copy_rows([*copies, *map(RowCopy, sources.tolist(), targets.tolist(), lengths.tolist())])
