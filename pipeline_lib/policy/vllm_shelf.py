"""vLLM's cache on a CPU, token by token: what a rollout starts with is not computed again.

One idea: vLLM shares whole blocks, 32 tokens on a CPU, and a rollout of the search starts in the middle of one. So the
blocks of a finished answer are copied to a shelf before vLLM takes them back, under the tokens that stand before
them; a request that begins like one gets a copy, of which the tokens that agree count as computed.

This is a KV connector, vLLM's own way for keys and values from elsewhere. Departures from the usual ones:

1. Scheduler and worker are in one process, or it is not used: a plan of copies is handed over as an object.
2. A hit may end within a block. The rest of that copy belongs to another answer and is overwritten, never attended to.
3. Several engines of one process have one connector on their workers' side, as vLLM's is a global: so it holds nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec

BLOCKS_PER_ROW = 8  # copies for every request that runs at a time: trees that are searched together make some six each
CACHE_SHARE = 8  # the shelf takes at most one eighth of the cache's memory on top

_registered: list[dict[str, torch.Tensor]] = []  # by the worker that was started last, until its scheduler comes


class Shelf:
    """Copies of a cache's blocks, found by the tokens before them and in them; the longest unused one makes room.

    Args:
        caches: of each layer, `[num_blocks, ..., C]` in the CPU's memory, any dtype, stride 1 along the last axis.
        max_blocks: as many copies, at least 1; their memory is first touched when they are made.
    """

    def __init__(self, caches: list[torch.Tensor], max_blocks: int) -> None:
        # As bytes in NumPy's hands: a step copies few blocks, and each of torch's calls costs more than a block.
        bytes_of = [cache.view(torch.uint8).numpy() for cache in caches]
        self._pairs = [(cache, np.empty((max_blocks, *cache.shape[1:]), np.uint8)) for cache in bytes_of]
        self._max_blocks = max_blocks
        self._held: OrderedDict[int, tuple[bytes, list[int]]] = OrderedDict()  # by place, the longest unused first
        self._entries: dict[bytes, list[tuple[list[int], int]]] = {}  # by what stands before, in order
        self._to_save: dict[int, int] = {}
        self._to_load: dict[int, int] = {}

    def keep(self, before: bytes, token_ids: list[int], block: int) -> None:
        """Plans a copy of `block`, which `save` makes, unless there is one with all of its tokens.

        Args:
            before: digest of all the tokens before the block, and of the weights.
            token_ids: of the block's computed tokens, from its first on; not empty.
            block: in [0, num_blocks).
        """
        if self.find(before, token_ids)[0] == len(token_ids):
            return
        place = self._free_place()
        insort(self._entries.setdefault(before, []), (token_ids, place))
        self._held[place] = before, token_ids
        self._to_save[place] = block

    def find(self, before: bytes, token_ids: list[int]) -> tuple[int, int]:
        """(tokens, place) of the copy that shares the most leading tokens with `token_ids`.

        Among copies in the order of their tokens it is a neighbour of where `token_ids` would stand.
        """
        entries = self._entries.get(before, [])
        index = bisect_left(entries, (token_ids,))
        near = entries[max(0, index - 1) : index + 1]
        return max(((_num_shared(ids, token_ids), place) for ids, place in near), default=(0, -1))

    def take(self, place: int, block: int) -> None:
        """Plans that `block` gets the copy at `place`; `load` makes it so."""
        self._held.move_to_end(place)
        self._to_load[block] = place

    def save(self) -> None:
        """Copies to the shelf what was planned. To be called before any of those blocks is written again."""
        for place, block in self._to_save.items():
            for cache, copies in self._pairs:
                copies[place] = cache[block]
        self._to_save.clear()

    def load(self) -> None:
        """Copies from the shelf what was planned."""
        for block, place in self._to_load.items():
            for cache, copies in self._pairs:
                cache[block] = copies[place]
        self._to_load.clear()

    def clear(self) -> None:
        """Forgets all copies."""
        for collection in (self._held, self._entries, self._to_save, self._to_load):
            collection.clear()

    def _free_place(self) -> int:
        if len(self._held) < self._max_blocks:
            return len(self._held)
        place, (before, token_ids) = self._held.popitem(last=False)
        entries = self._entries[before]
        del entries[bisect_left(entries, (token_ids, place))]
        if not entries:
            del self._entries[before]
        return place


@dataclass(eq=False)
class Plan(KVConnectorMetadata):
    """What the worker is to copy before the next pass; `shelf` is None where there is nothing."""

    shelf: Shelf | None


class ShelfConnector(KVConnectorBase_V1, SupportsHMA):
    """Both sides of it: the scheduler's has the shelf, the worker's does what a plan says.

    A model with other than one kind of cache, plain attention over all tokens, is left to vLLM alone.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._block_tokens: int = vllm_config.cache_config.block_size
        self._shelf: Shelf | None = None
        self._found = (-1, -1)
        if role is KVConnectorRole.SCHEDULER and _registered:
            max_blocks = BLOCKS_PER_ROW * vllm_config.scheduler_config.max_num_seqs
            self._shelf = _shelf_for(_registered.pop(), kv_cache_config, max_blocks)

    # On the worker's side.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        _registered[:] = [kv_caches]

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        shelf = self._get_connector_metadata().shelf
        if shelf is not None:
            shelf.load()

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, *_: Any, **__: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass

    # On the scheduler's side.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens on the shelf that follow those in whole blocks; the last token is always computed, for its logits."""
        shelf, index = self._shelf, num_computed_tokens // self._block_tokens
        if shelf is None:
            return 0, False
        end = min(request.num_tokens - 1, num_computed_tokens + self._block_tokens)
        num_found, place = shelf.find(_before(request, index), request.all_token_ids[num_computed_tokens:end])
        self._found = place, index
        return num_found, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens and self._shelf is not None:
            place, index = self._found
            self._shelf.take(place, blocks.blocks[0][index].block_id)

    def build_connector_meta(self, scheduler_output: Any) -> Plan:
        """The copies are made here: blocks that were given back since the last pass are not written before the next."""
        if self._shelf is not None:
            self._shelf.save()
        return Plan(self._shelf)

    def request_finished_all_groups(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, None]:
        """Keeps the blocks from that of the prompt's last token on."""
        if self._shelf is not None:
            size, token_ids = self._block_tokens, request.all_token_ids
            num_computed = min(request.num_computed_tokens, len(token_ids))
            for index in range((request.num_prompt_tokens - 1) // size, -(-num_computed // size)):
                inside = token_ids[index * size : min(num_computed, (index + 1) * size)]
                self._shelf.keep(_before(request, index), inside, block_ids[0][index])
        return False, None

    def reset_cache(self) -> bool:
        if self._shelf is not None:
            self._shelf.clear()
        return True


def _shelf_for(caches: dict[str, torch.Tensor], kv_cache_config: Any, max_blocks: int) -> Shelf | None:
    groups, num_blocks = kv_cache_config.kv_cache_groups, kv_cache_config.num_blocks
    tensors = list({cache.data_ptr(): cache for cache in caches.values()}.values())
    is_plain = len(groups) == 1 and type(groups[0].kv_cache_spec) is FullAttentionSpec
    if not is_plain or any(len(tensor) != num_blocks or tensor.stride(-1) != 1 for tensor in tensors):
        return None
    return Shelf(tensors, max(1, min(max_blocks, num_blocks // CACHE_SHARE)))


def _before(request: Any, index: int) -> bytes:
    """All that block `index` depends on except its own tokens: vLLM's hash of the block before it, or the adapter."""
    if index:
        return bytes(request.block_hashes[index - 1])
    return b"" if request.lora_request is None else str(request.lora_request.lora_int_id).encode()


def _num_shared(one: list[int], other: list[int]) -> int:
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(index for index in range(length) if one[index] != other[index])
