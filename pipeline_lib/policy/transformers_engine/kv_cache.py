"""Storage of the keys and values of many sequences, a row each, cut into blocks of positions.

    keys[layer]: [blocks, rows, Hkv, BLOCK, D]     keys[layer][b, :n] is one contiguous stretch

because a contiguous stretch streams from memory 3-4 times faster on a CPU than the same amount with gaps (measured, 128
rows of 64 positions). Storage grows block by block with the longest sequence.

Letters beside those of `types`: Hkv key-value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.config import ConfigError

ROW_MULTIPLE = 16  # fewer than 4 rows, or an odd number, takes MKL to other kernels with other sums
CPU_BLOCK = 64
CUDA_BLOCK = 256  # kernel launches cost more there than masked positions do


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `count`: 32 for 17 and 16."""
    return -(-count // multiple) * multiple


class RowCopy(NamedTuple):
    """The first `length` positions of row `source`, to go to row `target`."""

    source: int
    target: int
    length: int


class BlockCache:
    """Keys and values of `num_rows` sequences, for all layers.

    Args:
        num_rows: sequences that can be held.
        device: where the model is.

    Attributes:
        block: positions in a block.
        keys, values: by layer, from its first `write` on; see the module.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.num_rows = num_rows
        self.device = device
        self.on_cpu = device.type == "cpu"
        self.block = CPU_BLOCK if self.on_cpu else CUDA_BLOCK
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def write(
        self, layer: int, key: Tensor, value: Tensor, *, places: Tensor, num_blocks: int
    ) -> tuple[Tensor, Tensor]:
        """A layer's keys and values, once those of T token rows went to their places.

        Args:
            layer: its number.
            key: `[T, Hkv, D]`.
            value: `[T, Hkv, D]`.
            places: `[T * Hkv]` int64, see `BlockAccess.places`.
            num_blocks: as many must be there; they are added where they are missing.

        Raises:
            ConfigError: the device has no room for more blocks.
        """
        for stores, new in ((self.keys, key), (self.values, value)):
            self._grow(stores, layer, new, num_blocks)
            # One flat index and whole lines of D: 1.5 times as fast as indexing the five dimensions.
            stores[layer].view(-1, new.shape[-1]).index_copy_(0, places, new.reshape(-1, new.shape[-1]))
        return self.keys[layer], self.values[layer]

    def copy_rows(self, copies: Sequence[RowCopy]) -> None:
        """Makes the copies one after the other: a row stands for what the copies before left in it."""
        if self.on_cpu:
            # As bytes, since numpy has no bfloat16. Row by row takes 0.7 of the time of whole blocks at once.
            stores = [store.view(torch.uint8).numpy() for store in (*self.keys.values(), *self.values.values())]
            for source, target, length in copies:
                for start in range(0, length, self.block):
                    block, stop = start // self.block, min(self.block, length - start)
                    for store in stores:
                        store[block, target, :, :stop] = store[block, source, :, :stop]
        elif copies:
            self._copy_blocks(copies)

    def clear_rows(self, rows: Tensor) -> None:
        """Zeroes rows that a broken rollout filled with values that are not finite."""
        for tensor in (*self.keys.values(), *self.values.values()):
            tensor.index_fill_(1, rows, 0)

    def _copy_blocks(self, copies: Sequence[RowCopy]) -> None:
        """`copy_rows` in whole blocks and all at once, for a device on which every operation costs a launch."""
        origins: dict[int, tuple[int, int]] = {}
        for source, target, length in copies:
            origins[target] = (origins[source][0] if source in origins else source, length)
        targets = np.array(list(origins))
        sources, lengths = np.array(list(origins.values())).T
        counts = -(-lengths // self.block)
        blocks = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        read, write = (
            torch.from_numpy(np.repeat(rows, counts) + blocks * self.num_rows).to(self.device)
            for rows in (sources, targets)
        )
        for store in (*self.keys.values(), *self.values.values()):
            lines = store.view(len(store) * self.num_rows, -1)
            lines.index_copy_(0, write, lines.index_select(0, read))

    def _grow(self, stores: dict[int, Tensor], layer: int, like: Tensor, num_blocks: int) -> None:
        store = stores.get(layer)
        missing = num_blocks - (0 if store is None else len(store))
        if missing <= 0:
            return
        num_heads, size = like.shape[1:]
        try:
            # Zeros, not empty: a masked position is multiplied by 0, and 0 times garbage may be NaN.
            grown = like.new_zeros((missing, self.num_rows, num_heads, self.block, size))
            stores[layer] = grown if store is None else torch.cat([store, grown])
        except torch.OutOfMemoryError as error:
            advice = "lower policy.max_batch or policy.max_context_tokens"
            raise ConfigError(
                f"the key-value cache of {self.num_rows} rows does not fit on {like.device}: {advice}"
            ) from error
