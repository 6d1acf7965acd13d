"""Which tokens go through the model in one pass: planned from the slot table, which stays as it is.

A slot that lacks many tokens of its prompt gets a row for each, as many as fit; one that lacks a few sends them one by
one through its decoding row; one that lacks only its last known token is ready, and its next token is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline_lib.policy.transformers_engine.kv_cache import ROW_MULTIPLE, round_up
from pipeline_lib.policy.transformers_engine.slots import IntArray, SlotTable
from pipeline_lib.types import Int32Array

PREFILL_TOKENS = 512  # per pass: bounds memory, and how long running requests wait for entering ones
CATCH_UP_TOKENS = 6  # so few prompt tokens go one by one through the decoding row: cheaper than rows of their own


class PassPlan(NamedTuple):
    """The tokens of one pass, each by its slot and its position there.

    Args:
        prefill_slots, prefill_positions: `[P]` int64, prompt tokens with rows of their own; ascending in each slot.
        decode_slots, decode_positions: `[N]` int64, one token of each of these slots.
        ready: the first of `decode_slots`, whose next token is drawn.
    """

    prefill_slots: IntArray
    prefill_positions: IntArray
    decode_slots: IntArray
    decode_positions: IntArray
    ready: IntArray


def plan_pass(table: SlotTable) -> PassPlan:
    """What the table's slots need next; slots that finish their prompt in this pass also decode in it."""
    computed, last = table.computed[: table.num_slots], table.lengths[: table.num_slots] - 1
    missing = np.maximum(last - computed, 0)
    catching_up = np.flatnonzero((missing > 0) & (missing <= CATCH_UP_TOKENS))
    entering = np.flatnonzero(missing > CATCH_UP_TOKENS)
    counts = share_out(missing[entering], PREFILL_TOKENS)
    prefill_slots = np.repeat(entering, counts)
    within_slot = np.arange(len(prefill_slots)) - np.repeat(np.cumsum(counts) - counts, counts)
    prefilled = computed.copy()
    prefilled[entering] += counts
    ready = np.flatnonzero(table.occupied & (prefilled == last))
    decode_slots = np.concatenate([ready, catching_up])
    return PassPlan(
        prefill_slots=prefill_slots,
        prefill_positions=computed[prefill_slots] + within_slot,
        decode_slots=decode_slots,
        decode_positions=prefilled[decode_slots],
        ready=ready,
    )


def share_out(wanted: IntArray, budget: int) -> IntArray:
    """What each gets of `budget`, first come, first served: (5, 3, 0) of (5, 9, 2) with 8 to share."""
    before = np.cumsum(wanted) - wanted
    return np.clip(budget - before, 0, wanted)


@dataclass(frozen=True, slots=True)
class TokenRows:
    """The model's input for one pass: T token rows, those that prefill first.

    Args:
        token_ids, positions, rows: `[T]` int64, see `BlockAccess`.
        num_prefill: rows of which no logits are wanted.
    """

    token_ids: IntArray
    positions: IntArray
    rows: IntArray
    num_prefill: int

    @classmethod
    def padding(cls, num_prefill: int, num_decode: int, padding_row: int) -> TokenRows:
        """Rows that write to `padding_row` and matter to nobody, until `fill` gives some a meaning."""
        count = num_prefill + num_decode
        zeros = np.zeros(count, dtype=np.int64)
        return cls(zeros, zeros.copy(), np.full(count, padding_row, dtype=np.int64), num_prefill)

    @classmethod
    def of(cls, plan: PassPlan, table: SlotTable) -> TokenRows:
        """The rows of a plan, padded to full groups; a slot decodes in the row of its number."""
        num_prefill = round_up(len(plan.prefill_slots), ROW_MULTIPLE)
        num_decode = round_up(int(plan.decode_slots.max(initial=0)) + 1, ROW_MULTIPLE)
        rows = cls.padding(num_prefill, num_decode, table.padding_row)
        rows.fill(np.arange(len(plan.prefill_slots)), plan.prefill_slots, plan.prefill_positions, table.tokens)
        rows.fill(num_prefill + plan.decode_slots, plan.decode_slots, plan.decode_positions, table.tokens)
        return rows

    def fill(self, index: IntArray, rows: IntArray, positions: IntArray, tokens: Int32Array) -> None:
        """Sets rows `index` to the tokens that stand at (`rows`, `positions`) in the table `tokens`."""
        self.token_ids[index] = tokens[rows, positions]
        self.positions[index] = positions
        self.rows[index] = rows
