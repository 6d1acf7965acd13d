"""Which request sits in which storage row of the key-value cache, and what each row still holds.

The first rows are slots, where requests run and where a finished sequence stays until its slot is needed; the next are
retained rows, to which it then moves and waits, least recently used first out, for a request that starts alike; the
last row takes the writes of padding. All that is known per row lies in arrays: a pass needs no Python loop over rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.policy.protocol import SampleRequest
from pipeline_lib.policy.transformers_engine.sampling import draw_uniforms
from pipeline_lib.types import Int32Array

IntArray = NDArray[np.int64]
MIN_RETAINED = 2  # rows: one is copied from while another takes over what a slot held
_ROW_ARRAYS = ("tokens", "lengths", "computed", "last_used")
_SAMPLING_ARRAYS = ("temperatures", "top_ps", "top_ks", "min_ps", "uniforms", "wants_logprobs", "logprobs")
_SLOT_ARRAYS = ("prompt_lengths", "limits", "occupied", *_SAMPLING_ARRAYS)


@dataclass(frozen=True, slots=True)
class Match:
    """The row that has computed the longest common beginning with a prompt.

    Args:
        row: its number.
        length: tokens of that beginning.
        length_soon: of the longest one that a running request has, computed or not.
    """

    row: int
    length: int
    length_soon: int


class SlotTable:
    """Arrays over storage rows.

    Shapes: S slots, W rows in all (slots, retained, one for padding), C context tokens.

    Args:
        num_slots: S, rows that may decode, padding up to a full pass included.
        num_retained: rows for finished sequences.
        context: C, longest sequence in tokens.

    Attributes:
        tokens: `[W, C]` int32; the first ``lengths`` of each row are known.
        lengths: `[W]` int64 tokens known.
        computed: `[W]` int64 positions whose key and value are in the cache; a slot decodes once it
            lacks only its last token.
        last_used: `[W]` int64, the count of uses at each row's last one.
        prompt_lengths, limits: `[S]` int64, length at the start, and the one at which a request ends.
        occupied: `[S]` bool.
        uniforms: `[S, *]` float64, u_t of the request in each slot.
        wants_logprobs: `[S]` bool, whether it asks how probable its tokens are.
        logprobs: `[S, *]` float32, of the tokens that such a request has drawn; as wide as the longest one needs.
    """

    def __init__(self, num_slots: int, num_retained: int, context: int) -> None:
        self.num_slots, self.context = num_slots, context
        self.num_rows = num_slots + num_retained + 1
        self.padding_row = self.num_rows - 1
        self.tokens = np.zeros((self.num_rows, context), dtype=np.int32)
        self.lengths = np.zeros(self.num_rows, dtype=np.int64)
        self.computed = np.zeros(self.num_rows, dtype=np.int64)
        self.last_used = np.zeros(self.num_rows, dtype=np.int64)
        self.prompt_lengths = np.zeros(num_slots, dtype=np.int64)
        self.limits = np.zeros(num_slots, dtype=np.int64)
        self.temperatures = np.ones(num_slots, dtype=np.float32)
        self.top_ps = np.ones(num_slots, dtype=np.float32)
        self.top_ks = np.zeros(num_slots, dtype=np.int64)
        self.min_ps = np.zeros(num_slots, dtype=np.float32)
        self.occupied = np.zeros(num_slots, dtype=bool)
        self.uniforms = np.zeros((num_slots, 1))
        self.wants_logprobs = np.zeros(num_slots, dtype=bool)
        self.logprobs = np.zeros((num_slots, 1), dtype=np.float32)
        self.requests: list[SampleRequest | None] = [None] * num_slots
        self._clock = 0

    def match(self, token_ids: Int32Array) -> Match:
        """The best row to copy from; the last prompt token is left out, since it must be computed for its logits."""
        num_wanted = len(token_ids) - 1
        equal = np.zeros((self.num_rows, num_wanted + 1), dtype=bool)  # the last column ends every row
        np.equal(self.tokens[:, :num_wanted], token_ids[:-1], out=equal[:, :num_wanted])
        common = equal.argmin(axis=1)
        usable = np.minimum(common, self.computed)
        row = int(usable.argmax())
        soon = np.minimum(common, self.lengths - 1)[: self.num_slots].max(initial=0, where=self.occupied)
        return Match(row, int(usable[row]), int(soon))

    def admit(self, slot: int, request: SampleRequest, num_copied: int) -> None:
        """Puts `request` into the free `slot`, its first `num_copied` positions already in the cache."""
        length, params = len(request.token_ids), request.params
        self.tokens[slot, :length] = request.token_ids
        self.lengths[slot] = self.prompt_lengths[slot] = length
        self.computed[slot] = num_copied
        self.limits[slot] = min(length + params.max_new_tokens, self.context)
        self.temperatures[slot], self.top_ps[slot] = params.temperature, params.top_p
        self.top_ks[slot], self.min_ps[slot] = params.top_k, params.min_p
        self.occupied[slot] = True
        self.requests[slot] = request
        self.wants_logprobs[slot] = params.logprobs
        num_new = int(self.limits[slot]) - length
        if params.temperature > 0:
            self.uniforms = _widened(self.uniforms, num_new)
            self.uniforms[slot, :num_new] = draw_uniforms(request.seed, num_new)
        if params.logprobs:
            self.logprobs = _widened(self.logprobs, num_new)

    def advance(self, slots: IntArray, positions: IntArray) -> None:
        """Notes that these positions of `slots` are in the cache, and all before them; ascending in each slot."""
        self.computed[slots] = positions + 1  # of a slot that stands there more than once the last one holds

    def touch(self, row: int) -> None:
        """Marks a row as used now, so that it is dropped last."""
        self._clock += 1
        self.last_used[row] = self._clock

    def finish(self, slots: IntArray) -> None:
        """Frees `slots`; what they hold can still be copied from until `vacate`."""
        self.occupied[slots] = False
        self.lengths[slots] = self.computed[slots]
        self._clock += 1
        self.last_used[slots] = self._clock
        for slot in slots:
            self.requests[slot] = None

    def forget(self, slots: IntArray) -> None:
        """What the free `slots` held is not found any more."""
        self.computed[slots] = self.lengths[slots] = 0

    def vacate(self, slot: int) -> int | None:
        """The retained row that takes over what the free `slot` holds, the least recently used one; None if nothing."""
        if not self.computed[slot]:
            return None
        row = self.num_slots + int(self.last_used[self.num_slots : self.padding_row].argmin())
        for name in _ROW_ARRAYS:
            array = getattr(self, name)
            array[row] = array[slot]
        self.touch(row)
        return row

    def move(self, sources: IntArray, targets: IntArray) -> None:
        """Moves running requests to free slots."""
        for name in (*_ROW_ARRAYS, *_SLOT_ARRAYS):
            array = getattr(self, name)
            array[targets] = array[sources]
        for source, target in zip(sources, targets, strict=True):
            self.requests[target] = self.requests[source]
        self.finish(sources)
        self.forget(sources)

    def free_slots(self, limit: int) -> IntArray:
        """Free slots among the first `limit`, ascending."""
        return np.flatnonzero(~self.occupied[:limit])


def _widened(array: NDArray[Any], width: int) -> NDArray[Any]:
    """`[S, at least width]` the same numbers, zeros behind them; the array itself where it is wide enough."""
    return np.pad(array, ((0, 0), (0, width - array.shape[1]))) if width > array.shape[1] else array
