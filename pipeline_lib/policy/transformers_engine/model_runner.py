"""One forward pass over a flat list of token rows, and the measurement of whether rows are independent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline_lib.policy.transformers_engine.kv_cache import ROW_MULTIPLE, BlockCache
from pipeline_lib.policy.transformers_engine.slots import IntArray
from pipeline_lib.types import Int32Array

_BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}  # their frequencies depend on the longest row


@dataclass(frozen=True, slots=True)
class Rows:
    """T token rows, those that prefill first.

    Args:
        token_ids, positions, rows: `[T]` int64, see `kv_cache.RowPlan`.
        num_prefill: rows of which no logits are wanted.
    """

    token_ids: IntArray
    positions: IntArray
    rows: IntArray
    num_prefill: int

    @classmethod
    def padding(cls, num_prefill: int, num_decode: int, padding_row: int) -> Rows:
        """Rows that write to `padding_row` and matter to nobody, until `fill` gives some a meaning."""
        count = num_prefill + num_decode
        zeros = np.zeros(count, dtype=np.int64)
        return cls(zeros, zeros.copy(), np.full(count, padding_row, dtype=np.int64), num_prefill)

    def fill(self, index: IntArray, rows: IntArray, positions: IntArray, tokens: Int32Array) -> None:
        """Sets rows `index` to the tokens that stand at (`rows`, `positions`) in the table `tokens`."""
        self.token_ids[index] = tokens[rows, positions]
        self.positions[index] = positions
        self.rows[index] = rows


class ModelRunner:
    """A model and the cache that its passes read and write."""

    def __init__(self, model: Any, num_rows: int, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.cache = BlockCache(num_rows, device)

    def forward(self, rows: Rows) -> torch.Tensor:
        """`[T - num_prefill, V]` logits of the decoding rows."""
        ids, positions = (torch.from_numpy(a).to(self.device) for a in (rows.token_ids, rows.positions))
        self.cache.begin(rows.positions, rows.rows, rows.num_prefill)
        output = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=len(rows.rows) - rows.num_prefill,
            block_cache=self.cache,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def clear_rows(self, rows: IntArray) -> None:
        """See `BlockCache.clear_rows`."""
        if len(rows):
            self.cache.clear_rows(torch.from_numpy(rows).to(self.device))

    def close(self) -> None:
        """Drops the model and the cache."""
        self.model = None
        self.cache = BlockCache(0, self.device)


@torch.inference_mode()
def is_batch_invariant(model: Any, device: torch.device) -> bool:
    """Whether logits come out with the same bits however rows are batched; measured on a CPU in float32, else False.

    Two tokens are run for 64 slots, then again for 16 of them at another place in a smaller pass, and
    once more with the first token prefilled beside the second; all three must agree bit by bit. It is a
    probe of this machine's matrix kernels, not a proof; the tests compare whole workloads.

    Raises:
        ConfigError: the architecture cannot be run at all; better now than at the first request.
    """
    size, small = 4 * ROW_MULTIPLE, ROW_MULTIPLE
    vocab = model.get_input_embeddings().num_embeddings
    tokens = np.random.default_rng(0).integers(0, vocab, (size, 2)).astype(np.int32)

    def decode(runner: ModelRunner, which: Int32Array, position: int) -> torch.Tensor:
        rows = Rows.padding(0, len(which), runner.cache.num_rows - 1)
        rows.fill(np.arange(len(which)), np.arange(len(which)), np.full(len(which), position), which)
        return runner.forward(rows)

    rope = getattr(model.config, "rope_parameters", None) or {}
    if device.type != "cpu" or model.dtype != torch.float32 or rope.get("rope_type") in _BATCH_DEPENDENT_ROPE:
        decode(ModelRunner(model, 2, device), tokens[:1], 0)
        return False
    some = slice(small, 2 * small)
    runner = ModelRunner(model, size + 1, device)
    expected = [decode(runner, tokens, position)[some].clone() for position in (0, 1)]
    runner = ModelRunner(model, small + 1, device)  # one cache at a time: three of them were the engine's peak
    alone = [decode(runner, tokens[some], position) for position in (0, 1)]
    runner = ModelRunner(model, small + 1, device)
    rows = Rows.padding(small, small, small)
    for start, position in ((0, 0), (small, 1)):
        rows.fill(np.arange(start, start + small), np.arange(small), np.full(small, position), tokens[some])
    return all(map(torch.equal, expected, alone)) and torch.equal(expected[1], runner.forward(rows))
