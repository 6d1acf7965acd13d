"""The transformers backend: any Hugging Face causal language model as a `Policy`, on a CPU or on CUDA.

One idea: continuous refill with one forward pass per step. Each pass holds one row per running request and, in front,
the prompt tokens of those that have just entered; a request that shares a beginning with another one, running or
finished, copies keys and values instead of computing them.

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
from pipeline_lib.policy.devices import resolve_device
from pipeline_lib.policy.end_tokens import declared_end_ids, end_token_ids
from pipeline_lib.policy.in_flight import InFlight, ModelLimits
from pipeline_lib.policy.prompting.stop_rule import AnswerEnd, StopWatch, watch_for
from pipeline_lib.policy.protocol import Codec, EngineStats, FinishReason, SampleRequest, SampleResult
from pipeline_lib.policy.transformers_engine.kv_cache import ROW_MULTIPLE, RowCopy, round_up
from pipeline_lib.policy.transformers_engine.model_loading import load_model
from pipeline_lib.policy.transformers_engine.model_runner import ModelRunner, is_batch_invariant
from pipeline_lib.policy.transformers_engine.pass_plan import TokenRows, plan_pass
from pipeline_lib.policy.transformers_engine.sampling import draw_tokens, token_logprobs
from pipeline_lib.policy.transformers_engine.slots import MIN_RETAINED, IntArray, SlotTable
from pipeline_lib.types import Int32Array

WORTH_WAITING = 16  # tokens: a request waits a step for another one's prefill if that saves so many


class TransformersPolicy:
    """A model folder, with or without an adapter, behind `protocol.Policy`.

    Args:
        model_dir: folder or hub name of a causal language model in safetensors.
        adapter_dir: PEFT adapter to merge in, or None.
        policy_id: recorded with everything that is sampled.
        config: device, dtype, rows, context and threads.
        codec: of the model's own tokenizer.

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
        codec: TokenizerCodec,
    ) -> None:
        device = resolve_device(config.device)
        if device.type == "cpu":
            torch.set_num_threads(config.num_threads)
        self.policy_id = policy_id
        self.codec: Codec = codec
        self.capacity = config.max_batch
        self.stats = EngineStats()
        model: Any = load_model(model_dir, adapter_dir, config, device)
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or config.max_context_tokens
        context = min(config.max_context_tokens, longest)
        self._limits = ModelLimits(context, int(model.get_input_embeddings().num_embeddings))
        declared = declared_end_ids(model_dir, config.revision if isinstance(model_dir, str) else None)
        self._end_ids = np.array(end_token_ids(declared, codec.tokenizer), dtype=np.int64)
        num_slots = round_up(config.max_batch, ROW_MULTIPLE)
        self._table = SlotTable(num_slots, max(config.max_batch, MIN_RETAINED), context)
        self._runner = ModelRunner(model, self._table.num_rows, device)
        self.batch_invariant = is_batch_invariant(model, device)
        self._in_flight = InFlight()
        self._watches: dict[str, StopWatch] = {}  # of the running requests, where more than a token ends an answer

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        self._in_flight.submit(requests, self._limits)

    def poll(self) -> list[SampleResult]:
        start = time.perf_counter()
        with torch.inference_mode():
            while self._in_flight.needs_pass(self.capacity):
                self._step()
        self.stats.busy_s += time.perf_counter() - start
        return self._in_flight.hand_over()

    def close(self) -> None:
        self._in_flight.clear()
        self._watches.clear()
        self._runner.close()

    def _step(self) -> None:
        """Admits, prefills, decodes one token per ready slot, and collects what has finished."""
        self._admit()
        plan = plan_pass(self._table)
        logits = self._runner.forward(TokenRows.of(plan, self._table))
        self._table.advance(plan.prefill_slots, plan.prefill_positions)
        self._table.advance(plan.decode_slots, plan.decode_positions)
        tokens = self._draw(logits, plan.ready)
        self._note_logprobs(logits, plan.ready, tokens)
        self.stats.slot_steps += len(plan.ready)
        self.stats.capacity_steps += self.capacity
        self.stats.tokens_generated += len(plan.ready)
        self._append(plan.ready, tokens)
        if not self._in_flight.waiting:
            self._compact()

    def _admit(self) -> None:
        """Moves queued requests into free slots; those that gain by another one's prefill wait for it."""
        table, waiting = self._table, self._in_flight.waiting
        if not waiting:
            return
        held_back: list[SampleRequest] = []
        copies: list[RowCopy] = []
        free = deque(table.free_slots(self.capacity).tolist())
        most_held_back = len(free)  # with no bound, a long queue would be searched for ever new prompts
        while free and waiting and len(held_back) < most_held_back:
            request = waiting.popleft()
            match = table.match(request.token_ids)
            if match.length_soon >= match.length + WORTH_WAITING:
                held_back.append(request)
                continue
            slot = free.popleft()
            table.touch(match.row)  # so that it is not the row that the slot's old content goes to
            self._vacate(slot, copies)
            if match.length:
                copies.append(RowCopy(match.row, slot, match.length))
            table.admit(slot, request, match.length)
            if (watch := watch_for(self.codec, request)) is not None:
                self._watches[request.request_id] = watch
            self.stats.tokens_reused += match.length
            self.stats.tokens_prefilled += len(request.token_ids) - match.length
        waiting.extendleft(reversed(held_back))
        self._runner.cache.copy_rows(copies)

    def _vacate(self, slot: int, copies: list[RowCopy]) -> None:
        """Lets a retained row take over what the free `slot` still holds."""
        retained = self._table.vacate(slot)
        if retained is not None:
            copies.append(RowCopy(slot, retained, int(self._table.computed[retained])))

    def _draw(self, logits: torch.Tensor, ready: IntArray) -> IntArray:
        """`[len(ready)]` drawn ids, -1 where the logits were not finite."""
        table, num_rows = self._table, len(logits)
        index = np.maximum(table.lengths[:num_rows] - table.prompt_lengths[:num_rows], 0)
        uniforms = table.uniforms[np.arange(num_rows), np.minimum(index, table.uniforms.shape[1] - 1)]
        per_row = (table.temperatures, table.top_ps, table.top_ks, table.min_ps)
        inputs = (torch.from_numpy(a).to(logits.device) for a in (uniforms, *(each[:num_rows] for each in per_row)))
        drawn: IntArray = draw_tokens(logits, *inputs).cpu().numpy()
        return drawn[ready]

    def _note_logprobs(self, logits: torch.Tensor, ready: IntArray, tokens: IntArray) -> None:
        """Keeps how probable the drawn tokens were, of the requests that ask for it."""
        table = self._table
        wanted = table.wants_logprobs[ready] & (tokens >= 0)
        if not wanted.any():
            return
        slots = ready[wanted]
        rows, drawn = (torch.from_numpy(a).to(logits.device) for a in (slots, tokens[wanted]))
        places = table.lengths[slots] - table.prompt_lengths[slots]
        table.logprobs[slots, places] = token_logprobs(logits[rows], drawn).cpu().numpy()

    def _append(self, ready: IntArray, tokens: IntArray) -> None:
        """Adds the drawn tokens to their rows and turns finished requests into results."""
        table = self._table
        broken, ended = tokens < 0, np.isin(tokens, self._end_ids)
        going = ready[~(broken | ended)]
        table.tokens[going, table.lengths[going]] = tokens[~(broken | ended)]
        table.lengths[going] += 1
        stopped = self._stopped(going) if self._watches else {}
        over = broken | ended | (table.lengths[ready] >= table.limits[ready]) | np.isin(ready, list(stopped))
        if not over.any():
            return
        for slot, token, is_broken, is_ended in zip(ready[over], tokens[over], broken[over], ended[over], strict=True):
            reason = FinishReason.ERROR if is_broken else FinishReason.STOP if is_ended else FinishReason.LENGTH
            request_id, new_ids = self._answer_in(slot)
            logprobs = table.logprobs[slot] if table.wants_logprobs[slot] else None
            if slot in stopped:
                self._in_flight.stop(request_id, new_ids, stopped[slot], logprobs=logprobs)
            else:
                ended_by = int(token) if is_ended else None
                self._in_flight.finish(request_id, new_ids, reason, ended_by, logprobs=logprobs)
            self._watches.pop(request_id, None)
        table.finish(ready[over])
        if broken.any():
            self._runner.clear_rows(ready[broken])
            table.forget(ready[broken])

    def _answer_in(self, slot: int) -> tuple[str, Int32Array]:
        """The id of the request that runs in `slot`, and what it has drawn so far."""
        table, request = self._table, self._table.requests[slot]
        assert request is not None
        return request.request_id, table.tokens[slot, table.prompt_lengths[slot] : table.lengths[slot]]

    def _stopped(self, slots: IntArray) -> dict[int, AnswerEnd]:
        """Where answers have ended by the stop rule, by the slots that they run in."""
        answers = {int(slot): self._answer_in(int(slot)) for slot in slots}
        looks = {slot: self._watches[name].look(ids) for slot, (name, ids) in answers.items() if name in self._watches}
        return {slot: end for slot, end in looks.items() if end is not None}

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
