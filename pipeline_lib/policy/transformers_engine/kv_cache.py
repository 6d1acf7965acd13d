"""The key-value cache of the transformers backend, and the attention that reads it.

One idea: every forward pass is one flat list of token rows, first the prompt tokens to prefill, then
one row per slot that decodes; the attention function writes each row's key and value into the slot
it belongs to and lets the row look at that slot alone. Storage is cut into blocks of positions:

    keys[layer]: [blocks, rows, Hkv, BLOCK, D]     keys[layer][b, :n] is one contiguous stretch

because a contiguous stretch streams from memory 3-4 times faster on a CPU than the same amount with
gaps (measured, 128 rows of 64 positions). A row multiplies block by block in the same shape
whichever rows stand beside it and however long the longest of them is, which is what makes the
engine batch-invariant on a CPU.

transformers offers this hook: a registered attention function, which gets every keyword argument of
the model's call (its own continuous batching passes a cache that way).

Letters beside those of `types`: Hq query heads, Hkv key-value heads, G = Hq / Hkv, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from pipeline_lib.config import ConfigError
from pipeline_lib.policy.transformers_engine.slots import IntArray

ATTENTION_NAME = "coppice-blocks"
ROW_MULTIPLE = 16  # fewer than 4 rows, or an odd number, takes MKL to other kernels with other sums
CPU_BLOCK = 64
CUDA_BLOCK = 256  # kernel launches cost more there than masked positions do
PICKED_SHARE = 1 / 8  # on a CPU: a block that so few of the decoding rows see is read for those alone, in half the time
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # would change the result if they were ignored


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `count`: 32 for 17 and 16."""
    return -(-count // multiple) * multiple


class RowCopy(NamedTuple):
    """The first `length` positions of row `source`, to go to row `target`."""

    source: int
    target: int
    length: int


Reach = list[Tensor | None]


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Where the T token rows of one forward pass live.

    Args:
        positions: `[T]` int64, each row's position in its sequence; it sees positions up to its own.
        rows: `[T]` int64, the storage row that it writes to and, when it prefills, reads from.
        num_prefill: the first so many rows prefill; each of the rest reads the storage row of its index.
        prefill_reach, decode_reach: for each block that one of those rows sees, the `[N]` int64 of them for which
            it is read, counted among them; None for all. The others would see nothing there.
    """

    positions: Tensor
    rows: Tensor
    num_prefill: int
    prefill_reach: Reach
    decode_reach: Reach

    @property
    def num_blocks(self) -> int:
        """How many blocks the longest sequence fills or begins."""
        return max(len(self.prefill_reach), len(self.decode_reach))


class BlockCache:
    """Keys and values of `num_rows` sequences, for all layers, grown block by block.

    Args:
        num_rows: sequences that can be held.
        device: where the model is.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.num_rows = num_rows
        self.device = device
        self._on_cpu = device.type == "cpu"
        self.block = CPU_BLOCK if self._on_cpu else CUDA_BLOCK
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._plan: RowPlan | None = None
        self._targets: dict[int, Tensor] = {}  # by number of heads
        self._masks: dict[int | None, Tensor] = {}

    def begin(self, positions: IntArray, rows: IntArray, num_prefill: int) -> None:
        """Plans the `attend` calls that follow, one per layer; see `RowPlan`."""
        self._plan = RowPlan(
            positions=self._to_device(positions),
            rows=self._to_device(rows),
            num_prefill=num_prefill,
            prefill_reach=self._reach(positions[:num_prefill], most_picked=1.0),  # they are picked in any case
            decode_reach=self._reach(positions[num_prefill:], most_picked=PICKED_SHARE if self._on_cpu else 0.0),
        )
        self._targets = {}
        self._masks = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
    ) -> Tensor:
        """Stores each row's key and value, then attends: ``softmax(q k^T * scaling + mask) v``.

        Shapes: query `[T, Hq, D]`, key and value `[T, Hkv, D]`, result `[T, Hq, D]`.
        """
        plan = self._plan
        if plan is None:
            raise RuntimeError("BlockCache.begin must come before the forward pass")
        keys = self._write(self.keys, layer, key, plan.num_blocks)
        values = self._write(self.values, layer, value, plan.num_blocks)
        num_heads, cut = key.shape[1], plan.num_prefill
        grouped = (query * scaling).reshape(len(query) * num_heads, -1, query.shape[-1])
        mask = self._mask(window, query.dtype)
        parts = []
        if cut:
            picked, some = plan.rows[:cut], grouped[: cut * num_heads]
            parts.append(self._attend_rows(some, keys, values, mask[:cut], picked, plan.prefill_reach))
        if cut < len(query):
            first, rest = len(query) - cut, grouped[cut * num_heads :]
            parts.append(self._attend_rows(rest, keys, values, mask[cut:], first, plan.decode_reach))
        return torch.cat(parts).reshape(query.shape)

    def copy_rows(self, copies: Sequence[RowCopy]) -> None:
        """Makes the copies one after the other: a row stands for what the copies before left in it."""
        if self._on_cpu:
            # As bytes, since numpy has no bfloat16. Row by row takes 0.7 of the time of whole blocks at once.
            stores = [store.view(torch.uint8).numpy() for store in (*self.keys.values(), *self.values.values())]
            for source, target, length in copies:
                for start in range(0, length, self.block):
                    block, stop = start // self.block, min(self.block, length - start)
                    for store in stores:
                        store[block, target, :, :stop] = store[block, source, :, :stop]
        elif copies:
            self._copy_blocks(copies)

    def _copy_blocks(self, copies: Sequence[RowCopy]) -> None:
        """`copy_rows` in whole blocks and all at once, for a device on which every operation costs a launch."""
        origins: dict[int, tuple[int, int]] = {}
        for source, target, length in copies:
            origins[target] = (origins[source][0] if source in origins else source, length)
        targets = np.array(list(origins))
        sources, lengths = np.array(list(origins.values())).T
        counts = -(-lengths // self.block)
        blocks = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        read, write = (self._to_device(np.repeat(rows, counts) + blocks * self.num_rows) for rows in (sources, targets))
        for store in (*self.keys.values(), *self.values.values()):
            lines = store.view(len(store) * self.num_rows, -1)
            lines.index_copy_(0, write, lines.index_select(0, read))

    def clear_rows(self, rows: Tensor) -> None:
        """Zeroes rows that a broken rollout filled with values that are not finite."""
        for tensor in (*self.keys.values(), *self.values.values()):
            tensor.index_fill_(1, rows, 0)

    def _to_device(self, array: IntArray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _reach(self, positions: IntArray, *, most_picked: float) -> Reach:
        """For each block, the rows that see it where they are at most `most_picked` of all, else None."""
        if not len(positions):
            return []
        sees = [np.flatnonzero(positions >= start) for start in range(0, int(positions.max()) + 1, self.block)]
        most = most_picked * len(positions)
        return [None if len(which) > most or len(which) == len(positions) else self._to_device(which) for which in sees]

    def _write(self, stores: dict[int, Tensor], layer: int, new: Tensor, num_blocks: int) -> Tensor:
        """The layer's storage, grown to `num_blocks`, after each token row's `[Hkv, D]` went to its place."""
        store, (num_heads, size) = stores.get(layer), new.shape[1:]
        missing = num_blocks - (0 if store is None else len(store))
        if missing > 0:
            store = stores[layer] = self._grow(store, (missing, self.num_rows, num_heads, self.block, size), new)
        assert store is not None
        # One flat index and whole lines of D: 1.5 times as fast as indexing the five dimensions.
        store.view(-1, size).index_copy_(0, self._target(num_heads), new.reshape(-1, size))
        return store

    def _grow(self, store: Tensor | None, shape: tuple[int, ...], like: Tensor) -> Tensor:
        try:
            # Zeros, not empty: a masked position is multiplied by 0, and 0 times garbage may be NaN.
            grown = like.new_zeros(shape)
            return grown if store is None else torch.cat([store, grown])
        except torch.OutOfMemoryError as error:
            advice = "lower policy.max_batch or policy.max_context_tokens"
            raise ConfigError(
                f"the key-value cache of {self.num_rows} rows does not fit on {like.device}: {advice}"
            ) from error

    def _target(self, num_heads: int) -> Tensor:
        """`[T * Hkv]` where each token row's heads go in storage seen as lines of D, made once per pass."""
        if num_heads not in self._targets:
            assert self._plan is not None
            positions, rows = self._plan.positions, self._plan.rows
            heads = torch.arange(num_heads, device=self.device)
            lines = ((positions // self.block * self.num_rows + rows)[:, None] * num_heads + heads) * self.block
            self._targets[num_heads] = (lines + (positions % self.block)[:, None]).flatten()
        return self._targets[num_heads]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """`[T, 1, 1, L]` of 0 where a row may look and minus infinity where not, made once per pass."""
        if window not in self._masks:
            plan = self._plan
            assert plan is not None
            columns = torch.arange(plan.num_blocks * self.block, device=self.device)
            positions = plan.positions[:, None]
            hidden = columns > positions
            if window is not None:
                hidden |= columns <= positions - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill_(hidden, -torch.inf)
            self._masks[window] = mask[:, None, None, :]
        return self._masks[window]

    def _attend_rows(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, rows: Tensor | int, reach: Reach
    ) -> Tensor:
        """Attention of R rows, each over one storage row: those listed in `rows`, or the first `rows` ones.

        A block is read for the rows that `reach` names, see `RowPlan`; for the others its scores are masked and its
        values weigh nothing.

        Shapes: query `[R * Hkv, G, D]`, keys and values `[blocks, rows, Hkv, BLOCK, D]`, mask `[R, 1, 1, L]`.
        """

        def block_of(tensor: Tensor, index: int) -> Tensor:
            which = reach[index]
            if isinstance(rows, int):
                chosen = tensor[index, :rows] if which is None else tensor[index].index_select(0, which)
            else:
                chosen = tensor[index].index_select(0, rows if which is None else rows[which])
            return chosen.reshape(-1, *chosen.shape[2:])

        def by_row(tensor: Tensor) -> Tensor:
            return tensor.view(len(mask), -1, *tensor.shape[1:])

        def scores_of(index: int) -> Tensor:
            which, block = reach[index], block_of(keys, index).transpose(1, 2)
            if which is None:
                return torch.bmm(query, block)
            some = torch.bmm(by_row(query)[which].flatten(0, 1), block)
            scores = query.new_zeros(*query.shape[:2], self.block)
            by_row(scores)[which] = some.view(len(which), -1, *some.shape[1:])
            return scores

        scores = torch.cat([scores_of(index) for index in range(len(reach))], dim=-1)
        masked = by_row(scores).add_(mask[..., : scores.shape[-1]])
        probs = torch.softmax(masked, dim=-1, dtype=torch.float32).to(query.dtype).view(scores.shape)
        output = torch.bmm(probs[..., : self.block], block_of(values, 0))
        for index, which in enumerate(reach[1:], start=1):
            span, block = slice(index * self.block, (index + 1) * self.block), block_of(values, index)
            if which is None:
                output = torch.baddbmm(output, probs[..., span], block)
            else:
                before, weights = (by_row(tensor)[which].flatten(0, 1) for tensor in (output, probs))
                some = torch.baddbmm(before, weights[..., span], block)
                by_row(output)[which] = some.view(len(which), -1, *some.shape[1:])
        return output


def block_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    block_cache: BlockCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in place of its own attention.

    Shapes: query `[1, Hq, T, D]`, key and value `[1, Hkv, T, D]`, result `[1, T, Hq, D]`.

    Raises:
        ConfigError: the architecture asks for something that `BlockCache` does not compute.
    """
    extra = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if block_cache is None or extra:
        why = f"its attention uses {extra[0]}" if extra else "it hands no keyword arguments to its attention"
        raise ConfigError(
            f"policy.model: {type(module).__name__} cannot be sampled by policy.backend=transformers: {why}"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    by_row = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    layer: Any = module.layer_idx
    output = block_cache.attend(layer, by_row[0], by_row[1], by_row[2], scaling=scale, window=sliding_window)
    return output[None], None


AttentionInterface.register(ATTENTION_NAME, block_attention)
