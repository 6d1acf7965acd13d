"""vLLM's cache on a CPU, token by token: what a rollout starts with is not computed again.

One idea: vLLM shares whole blocks, 32 tokens on a CPU, and a rollout of the search starts in the middle of one. So the
blocks of a finished answer are copied to a shelf before vLLM takes them back, under the tokens that stand before
them; a request that begins like one gets a copy, of which the tokens that agree count as computed.

This is a KV connector, vLLM's own way for keys and values from elsewhere. Departures from the usual ones:

1. The scheduler's side copies, at once: it shares a process with the worker, and no pass runs while it decides. A block
   that a request gives back is whole then, and one that a request has just been given is read by nobody yet.
2. A hit may end within a block. The rest of that copy belongs to another answer and is overwritten, never attended to.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
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
        # As bytes in NumPy's hands: each of torch's calls costs more than the copy of a block.
        bytes_of = [cache.view(torch.uint8).numpy() for cache in caches]
        self._pairs = [(cache, np.empty((max_blocks, *cache.shape[1:]), np.uint8)) for cache in bytes_of]
        self._max_blocks = max_blocks
        self._held: OrderedDict[int, tuple[bytes, list[int]]] = OrderedDict()  # by place, the longest unused first
        self._entries: dict[bytes, list[tuple[list[int], int]]] = {}  # by what stands before, in order

    def keep(self, before: bytes, token_ids: list[int], block: int) -> None:
        """Copies `block`, unless there is a copy with all of its tokens.

        Args:
            before: digest of all the tokens before the block, and of the weights.
            token_ids: of the block's computed tokens, from its first on; not empty.
            block: in [0, num_blocks).
        """
        num_shared, place = self.find(before, token_ids)
        if num_shared == len(token_ids):
            self._held.move_to_end(place)
            return
        place = self._free_place()
        insort(self._entries.setdefault(before, []), (token_ids, place))
        self._held[place] = before, token_ids
        for cache, copies in self._pairs:
            copies[place] = cache[block]

    def find(self, before: bytes, token_ids: list[int]) -> tuple[int, int]:
        """(tokens, place) of the copy that shares the most leading tokens with `token_ids`.

        Among copies in the order of their tokens it is a neighbour of where `token_ids` would stand.
        """
        entries = self._entries.get(before, [])
        index = bisect_left(entries, (token_ids,))
        near = entries[max(0, index - 1) : index + 1]
        return max(((_num_shared(ids, token_ids), place) for ids, place in near), default=(0, -1))

    def take(self, place: int, block: int) -> None:
        """Overwrites `block` with the copy at `place`."""
        self._held.move_to_end(place)
        for cache, copies in self._pairs:
            cache[block] = copies[place]

    def clear(self) -> None:
        """Forgets all copies."""
        self._held.clear()
        self._entries.clear()

    def _free_place(self) -> int:
        if len(self._held) < self._max_blocks:
            return len(self._held)
        place, (before, token_ids) = self._held.popitem(last=False)
        entries = self._entries[before]
        del entries[bisect_left(entries, (token_ids, place))]
        if not entries:
            del self._entries[before]
        return place


class ShelfConnector(KVConnectorBase_V1, SupportsHMA):
    """Both sides of it: the worker's says where the cache is, the scheduler's has the shelf.

    Where a cache is of another kind than plain attention over all tokens, or where a pass may run ahead of the
    scheduler, there is no shelf and vLLM does as it does without. Requests are token ids, never images or embeddings.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._block_tokens: int = vllm_config.cache_config.block_size
        self._shelf: Shelf | None = None
        self._found = (-1, -1)
        if role is KVConnectorRole.SCHEDULER and _registered:
            self._shelf = _shelf_for(_registered.pop(), vllm_config, kv_cache_config)

    # On the worker's side.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        _registered[:] = [kv_caches]

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        pass

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

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return KVConnectorMetadata()

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


def _shelf_for(caches: dict[str, torch.Tensor], vllm_config: Any, kv_cache_config: Any) -> Shelf | None:
    groups, num_blocks = kv_cache_config.kv_cache_groups, kv_cache_config.num_blocks
    tensors = list({cache.data_ptr(): cache for cache in caches.values()}.values())
    is_plain = len(groups) == 1 and type(groups[0].kv_cache_spec) is FullAttentionSpec
    runs_ahead = vllm_config.max_concurrent_batches > 1
    if not is_plain or runs_ahead or any(len(each) != num_blocks or each.stride(-1) != 1 for each in tensors):
        return None
    wanted = BLOCKS_PER_ROW * vllm_config.scheduler_config.max_num_seqs
    return Shelf(tensors, max(1, min(wanted, num_blocks // CACHE_SHARE)))


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
