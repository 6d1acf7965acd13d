"""One forward pass over a flat list of token rows, and the measurement of whether rows are independent."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline_lib.policy.transformers_engine.block_access import BlockAccess
from pipeline_lib.policy.transformers_engine.kv_cache import ROW_MULTIPLE, BlockCache
from pipeline_lib.policy.transformers_engine.pass_plan import TokenRows
from pipeline_lib.policy.transformers_engine.slots import IntArray
from pipeline_lib.types import Int32Array

_BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}  # their frequencies depend on the longest row


class ModelRunner:
    """A model and the cache that its passes read and write.

    Args:
        model: see `load_model`.
        num_rows: sequences that the cache holds.
        device: where the model is.
    """

    def __init__(self, model: Any, num_rows: int, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.cache = BlockCache(num_rows, device)

    def forward(self, rows: TokenRows) -> torch.Tensor:
        """`[T - num_prefill, V]` logits of the decoding rows."""
        ids, positions = (torch.from_numpy(a).to(self.device) for a in (rows.token_ids, rows.positions))
        output = self.model(
            input_ids=ids[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=len(rows.rows) - rows.num_prefill,
            block_access=BlockAccess(self.cache, rows.positions, rows.rows, rows.num_prefill),
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
        rows = TokenRows.padding(0, len(which), runner.cache.num_rows - 1)
        rows.fill(np.arange(len(which)), np.arange(len(which)), np.full(len(which), position), which)
        return runner.forward(rows)

    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}  # or by kind of layer
    if device.type != "cpu" or model.dtype != torch.float32 or kinds & _BATCH_DEPENDENT_ROPE:
        decode(ModelRunner(model, 2, device), tokens[:1], 0)
        return False
    some = slice(small, 2 * small)
    runner = ModelRunner(model, size + 1, device)
    expected = [decode(runner, tokens, position)[some].clone() for position in (0, 1)]
    runner = ModelRunner(model, small + 1, device)  # one cache at a time: three of them were the engine's peak
    alone = [decode(runner, tokens[some], position) for position in (0, 1)]
    runner = ModelRunner(model, small + 1, device)
    rows = TokenRows.padding(small, small, small)
    for start, position in ((0, 0), (small, 1)):
        rows.fill(np.arange(start, start + small), np.arange(small), np.full(small, position), tokens[some])
    return all(map(torch.equal, expected, alone)) and torch.equal(expected[1], runner.forward(rows))
