"""One pass of the transformers engine: what is planned from the slot table, and attention over blocks of storage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline_lib.policy import SampleRequest, SamplingParams
from pipeline_lib.policy.transformers_engine import block_access, pass_plan
from pipeline_lib.policy.transformers_engine.block_access import BlockAccess
from pipeline_lib.policy.transformers_engine.block_attention import ScoreShape, attend
from pipeline_lib.policy.transformers_engine.kv_cache import BlockCache
from pipeline_lib.policy.transformers_engine.pass_plan import TokenRows, plan_pass, share_out
from pipeline_lib.policy.transformers_engine.slots import SlotTable

BLOCK, ROWS, SLOTS = 4, 7, 5


def table_with(*prompts: tuple[int, int]) -> SlotTable:
    """A slot for each (length of its prompt, tokens of it that are in the cache); token t of slot s is 100 s + t."""
    table = SlotTable(num_slots=16, num_retained=2, context=64)
    for slot, (length, num_copied) in enumerate(prompts):
        ids = np.arange(length, dtype=np.int32) + 100 * slot
        table.admit(slot, SampleRequest(str(slot), ids, SamplingParams(8, 0.0), 0), num_copied)
    return table


def test_a_plan_leaves_the_table_as_it_is_and_says_what_each_slot_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_plan, "PREFILL_TOKENS", 20)
    table = table_with((10, 9), (12, 1), (10, 6), (20, 2), (9, 0))  # ready; 10, 3, 17 and 8 to go before the last token
    before = table.computed.copy(), table.lengths.copy()
    plan = plan_pass(table)
    assert np.array_equal(before[0], table.computed)
    assert np.array_equal(before[1], table.lengths)
    assert plan.prefill_slots.tolist() == [1] * 10 + [3] * 10
    assert plan.prefill_positions.tolist() == [*range(1, 11), *range(2, 12)]
    assert plan.ready.tolist() == [0, 1]
    assert (plan.decode_slots.tolist(), plan.decode_positions.tolist()) == ([0, 1, 2], [9, 11, 6])
    table.advance(plan.prefill_slots, plan.prefill_positions)
    table.advance(plan.decode_slots, plan.decode_positions)
    assert table.computed[:5].tolist() == [10, 12, 7, 12, 0]


def test_the_rows_of_a_plan_are_its_tokens_and_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_plan, "PREFILL_TOKENS", 20)
    table = table_with((10, 9), (12, 1), (10, 6))
    rows = TokenRows.of(plan_pass(table), table)
    assert (rows.num_prefill, len(rows.rows)) == (16, 32)
    assert rows.token_ids[:10].tolist() == [*range(101, 111)]
    assert rows.rows.tolist() == [1] * 10 + [table.padding_row] * 6 + [0, 1, 2] + [table.padding_row] * 13
    assert (rows.token_ids[16:19].tolist(), rows.positions[16:19].tolist()) == ([9, 111, 206], [9, 11, 6])


def test_a_budget_is_shared_first_come_first_served() -> None:
    assert share_out(np.array([5, 9, 2]), 8).tolist() == [5, 3, 0]
    assert share_out(np.array([], dtype=np.int64), 8).tolist() == []


def plain_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, scaling: float) -> torch.Tensor:
    """`[Hq, D]` of one row over what it sees: query `[Hq, D]`, keys and values `[positions, Hkv, D]`."""
    group = len(query) // keys.shape[1]
    keys, values = (tensor.repeat_interleave(group, dim=1).transpose(0, 1) for tensor in (keys, values))
    weights = torch.softmax(scaling * (query[:, None] @ keys.transpose(1, 2)), dim=-1)
    return (weights @ values)[:, 0]


@pytest.mark.parametrize("most_picked", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("window", [None, 3])
def test_attention_over_blocks_equals_plain_attention_row_by_row(
    most_picked: float, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four passes: prompts of three sequences, then a token each, one of them much longer than the others."""
    monkeypatch.setattr("pipeline_lib.policy.transformers_engine.kv_cache.CPU_BLOCK", BLOCK)
    monkeypatch.setattr(block_access, "PICKED_SHARE", most_picked)
    generator = torch.Generator().manual_seed(0)
    cache = BlockCache(ROWS, torch.device("cpu"))
    seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {row: [] for row in range(SLOTS)}
    lengths = dict.fromkeys(range(SLOTS), 0)
    for prefilled in ({3: 13, 1: 2}, {0: 6, 2: 1}, {}, {4: 9}):
        decoding = [row for row in range(SLOTS) if lengths[row]]
        wanted = [(row, lengths[row] + i) for row, count in prefilled.items() for i in range(count)]
        num_prefill, decodes = len(wanted), [(row, lengths[row]) if row in decoding else (ROWS - 1, 0) for row in seen]
        rows, positions = (np.array(column) for column in zip(*wanted, *decodes, strict=True))
        query = torch.randn(len(rows), 4, 8, generator=generator)
        key, value = (torch.randn(len(rows), 2, 8, generator=generator) for _ in range(2))
        access = BlockAccess(cache, positions, rows, num_prefill)
        found = attend(access, 0, query, key, value, ScoreShape(0.3, window))
        for index, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
            if row == ROWS - 1:
                continue
            seen[row].append((key[index], value[index]))
            lengths[row] = position + 1
            first = 0 if window is None else max(0, position + 1 - window)
            keys, values = (torch.stack(list(column)) for column in zip(*seen[row][first:], strict=True))
            expected = plain_attention(query[index], keys, values, scaling=0.3)
            torch.testing.assert_close(found[index], expected, rtol=1e-5, atol=1e-5)
    assert lengths == {3: 16, 1: 5, 0: 8, 2: 3, 4: 9}


@pytest.mark.parametrize("window", [None, 90])
def test_prompts_read_in_place_come_to_the_bits_of_blocks_copied_for_each_row(window: int | None) -> None:
    """Three prompts behind beginnings of their own, two of them over several blocks, and rows of padding."""
    generator = torch.Generator().manual_seed(1)
    cache = BlockCache(ROWS, torch.device("cpu"))
    wanted = [(3, 70 + i) for i in range(140)] + [(1, i) for i in range(9)] + [(4, 60 + i) for i in range(8)]
    wanted += [(ROWS - 1, 0)] * 3
    rows, positions = (np.array(column) for column in zip(*wanted, strict=True))
    access = BlockAccess(cache, positions, rows, len(rows))
    query = torch.randn(len(rows), 9, 64, generator=generator)
    cache.write(
        0, *torch.randn(2, len(rows), 3, 64, generator=generator), places=access.places(3), num_blocks=access.num_blocks
    )
    for store in (cache.keys[0], cache.values[0]):
        store.copy_(torch.randn(store.shape, generator=generator))
    key, value = (torch.randn(len(rows), 3, 64, generator=generator) for _ in range(2))
    shape = ScoreShape(0.125, window, 30.0)
    in_place = attend(access, 0, query, key, value, shape)
    cache.on_cpu = False
    copied = attend(access, 0, query, key, value, shape)
    assert torch.equal(in_place, copied)
