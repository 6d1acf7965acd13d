"""Where in the key-value cache the token rows of one forward pass write, and which blocks of it they read.

A pass is one flat list of T token rows: first the prompt tokens to prefill, then one row per slot that decodes. Each
writes its key and value to one place and reads one storage row, up to its own position. A row that prefills names that
storage row; decoding row i reads storage row i, so that all of them read one contiguous stretch of each block.

Letters beside those of `kv_cache`: R rows that attend together, which are those that prefill or those that decode. A
*row head* is one key-value head of one row, number ``row * Hkv + head``; R rows have R * Hkv of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.policy.transformers_engine.kv_cache import BlockCache
from pipeline_lib.policy.transformers_engine.slots import IntArray

PICKED_SHARE = 1 / 8  # on a CPU: a block that so few of the decoding rows see is read for those alone, in half the time


class BlockRead(NamedTuple):
    """Who reads one block of positions; the others of the R rows would see nothing there.

    Args:
        readers: `[N]` int64, row heads counted among the R rows; None for all of them.
        sources: `[N]` int64, the row head of storage that each reader reads; None where that is its own number.
    """

    readers: Tensor | None
    sources: Tensor | None


class Stretch(NamedTuple):
    """Rows of one pass, one after the other, that prefill the same storage row.

    Args:
        start: the first of them.
        stop: after the last of them.
        source: the storage row.
        readers: for each block up to the last one that any of them sees the first of them that does.
    """

    start: int
    stop: int
    source: int
    readers: tuple[int, ...]


class BlockAccess:
    """The cache, and what one forward pass does with it.

    Args:
        cache: that is written to and read.
        positions: `[T]` int64, each row's position in its sequence; it sees positions up to its own.
        rows: `[T]` int64, the storage row that each row writes to and, when it prefills, reads.
        num_prefill: the first so many rows prefill.
    """

    def __init__(self, cache: BlockCache, positions: IntArray, rows: IntArray, num_prefill: int) -> None:
        self.cache = cache
        self.num_prefill = num_prefill
        self.num_blocks = 1 + int(positions.max()) // cache.block
        self._positions, self._rows = positions, rows
        self._places: dict[int, Tensor] = {}  # by number of heads
        self._reads: dict[int, tuple[list[BlockRead], list[BlockRead]]] = {}  # by number of heads
        self._masks: dict[int | None, Tensor] = {}  # by window
        self._stretches: list[Stretch] | None = None

    def places(self, num_heads: int) -> Tensor:
        """`[T * Hkv]` int64: where each row's heads go in storage seen as lines of D; made once for all layers."""
        if num_heads not in self._places:
            block, offset = np.divmod(self._positions, self.cache.block)
            row_heads = _row_heads(block * self.cache.num_rows + self._rows, num_heads)
            self._places[num_heads] = self._tensor(row_heads * self.cache.block + np.repeat(offset, num_heads))
        return self._places[num_heads]

    def reads(self, num_heads: int) -> tuple[list[BlockRead], list[BlockRead]]:
        """What the rows that prefill read, and what those that decode do, block by block; made once for all layers."""
        if num_heads not in self._reads:
            prefill, decode = self._positions[: self.num_prefill], self._positions[self.num_prefill :]
            sources = self._rows[: self.num_prefill]
            most_picked = PICKED_SHARE if self.cache.on_cpu else 0.0
            self._reads[num_heads] = (
                [self._picked(readers, sources, num_heads) for readers in self._readers(prefill, most_picked=1.0)],
                [self._in_place(readers, num_heads) for readers in self._readers(decode, most_picked=most_picked)],
            )
        return self._reads[num_heads]

    def stretches(self) -> list[Stretch]:
        """The rows that prefill, by the storage row that they read; made once for all layers."""
        if self._stretches is None:
            rows = self._rows[: self.num_prefill]
            ends = [*(np.flatnonzero(np.diff(rows)) + 1).tolist(), len(rows)] if len(rows) else []
            self._stretches = [self._stretch(*span) for span in zip([0, *ends[:-1]], ends, strict=True)]
        return self._stretches

    def _stretch(self, start: int, stop: int) -> Stretch:
        positions = self._positions[start:stop]
        blocks = np.arange(0, int(positions[-1]) + 1, self.cache.block)  # where each begins; positions ascend
        readers = tuple((start + np.searchsorted(positions, blocks)).tolist())
        return Stretch(start, stop, int(self._rows[start]), readers)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """`[T, 1, 1, L]` of 0 where a row may look and minus infinity where not; made once for all layers.

        Args:
            window: a row sees so many positions at most, its own the last; None for all.
            dtype: of the scores.
        """
        if window not in self._masks:
            columns = torch.arange(self.num_blocks * self.cache.block, device=self.cache.device)
            positions = self._tensor(self._positions)[:, None]
            hidden = columns > positions
            if window is not None:
                hidden |= columns <= positions - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self.cache.device).masked_fill_(hidden, -torch.inf)
            self._masks[window] = mask[:, None, None, :]
        return self._masks[window]

    def _readers(self, positions: IntArray, *, most_picked: float) -> list[IntArray | None]:
        """For each block the rows that see it, where they are at most the share `most_picked` of all, else None."""
        if not len(positions):
            return []
        sees = [np.flatnonzero(positions >= start) for start in range(0, int(positions.max()) + 1, self.cache.block)]
        most = min(most_picked * len(positions), len(positions) - 1)
        return [which if len(which) <= most else None for which in sees]

    def _picked(self, readers: IntArray | None, sources: IntArray, num_heads: int) -> BlockRead:
        """A block that rows read which name their storage row."""
        if readers is None:
            return BlockRead(None, self._tensor(_row_heads(sources, num_heads)))
        return BlockRead(*(self._tensor(_row_heads(rows, num_heads)) for rows in (readers, sources[readers])))

    def _in_place(self, readers: IntArray | None, num_heads: int) -> BlockRead:
        """A block that rows read which stand for the storage row of their number."""
        if readers is None:
            return BlockRead(None, None)
        row_heads = self._tensor(_row_heads(readers, num_heads))
        return BlockRead(row_heads, row_heads)

    def _tensor(self, array: IntArray) -> Tensor:
        return torch.from_numpy(array).to(self.cache.device)


def _row_heads(rows: IntArray, num_heads: int) -> IntArray:
    """All row heads of some rows: (4, 5, 0, 1) of rows (2, 0) with two heads."""
    return (rows[:, None] * num_heads + np.arange(num_heads)).ravel()
