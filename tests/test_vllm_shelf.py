"""Reuse within a block of vLLM's cache: the same answers, and next to nothing computed again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm_fixtures import NEEDS_VLLM, TINY, answers, tiny_requests, transformers_policy, write_adapter

from pipeline_lib.policy import SampleRequest, SamplingParams
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.policy.tokenizers import load_codec
from pipeline_lib.policy.vllm_engine.vllm_policy import VllmPolicy

pytestmark = NEEDS_VLLM
BLOCK = TINY.vllm.block_tokens


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[VllmPolicy, VllmPolicy]]:
    """Two in this process: one with room for all, one whose cache is full all the time."""
    engines = []
    for gib in (None, 0.006):
        options = {"kv_cache_gib": gib, "merge_adapters": False}
        config = TINY.model_copy(update={"vllm": TINY.vllm.model_copy(update=options)})
        codec = load_codec(TINY_BASE, config)
        engines.append(VllmPolicy(TINY_BASE, policy_id="test", config=config, codec=codec, lora_rank=4))
    roomy, tight = engines
    yield roomy, tight
    for engine in engines:
        engine.close()


@pytest.fixture
def policy(engines: tuple[VllmPolicy, VllmPolicy]) -> VllmPolicy:
    """The one with room, and the base."""
    engines[0].load(TINY_BASE, adapter_dir=None, policy_id="base")
    return engines[0]


def greedy(name: str, token_ids: np.ndarray, max_new_tokens: int) -> SampleRequest:
    return SampleRequest(name, token_ids, SamplingParams(max_new_tokens, 0.0), 0)


def continuations(requests: list[SampleRequest], found: dict[str, tuple[str, tuple[int, ...]]]) -> list[SampleRequest]:
    """Every answer once more from every third of its tokens on, as the search goes on from another's steps."""
    again = []
    for request in requests:
        token_ids = found[request.request_id][1]
        for cut in range(1, len(token_ids), 3):
            prefix = np.concatenate([request.token_ids, np.array(token_ids[:cut], dtype=np.int32)])
            again.append(greedy(f"{request.request_id} {cut}", prefix, request.params.max_new_tokens - cut))
    return again


def check_continuations(policy: VllmPolicy, count: int) -> tuple[int, int]:
    """Greedy answers of `policy`, and their rests from every third token on, are those of the transformers backend.

    Returns:
        (continuations, prompt tokens that were computed for them).
    """
    requests = tiny_requests(policy, count)
    found = answers(policy, requests)
    assert found == answers(transformers_policy(), requests)
    again = continuations(requests, found)
    before = policy.stats.tokens_prefilled
    for name, (_, token_ids) in answers(policy, again).items():
        first, cut = name.rsplit(" ", 1)
        assert token_ids == found[first][1][int(cut) :], name
    return len(again), policy.stats.tokens_prefilled - before


def test_an_answer_goes_on_as_it_did_from_within_a_block(policy: VllmPolicy) -> None:
    count, num_computed = check_continuations(policy, 60)
    assert count > 300
    assert num_computed < 1.1 * count  # the last one of a prompt has to be; whole blocks alone leave a dozen more


def test_a_cache_that_is_full_all_the_time_changes_no_answer(
    engines: tuple[VllmPolicy, VllmPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = engines[1]._engine._engine.engine_core.engine_core.scheduler
    preempt, preempted = scheduler._preempt_request, []

    def count(request: Any, *others: Any, **named: Any) -> None:
        preempted.append(request.request_id)
        preempt(request, *others, **named)

    monkeypatch.setattr(scheduler, "_preempt_request", count)
    check_continuations(engines[1], 100)
    assert preempted


def test_weights_do_not_share_what_was_computed(policy: VllmPolicy, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 400, length).astype(np.int32) for length in (BLOCK // 2, BLOCK - 1, 2 * BLOCK - 5)]
    requests = [greedy(str(index), prompt, 24) for index, prompt in enumerate(prompts)]
    adapters = [None, *(write_adapter(tmp_path / str(seed), seed=seed, scale=0.3) for seed in (1, 2))]
    expected = [answers(transformers_policy(adapter), requests) for adapter in adapters]
    assert expected[0] != expected[1] != expected[2] != expected[0]
    for index in (0, 1, 2, 0, 2):
        policy.load(TINY_BASE, adapter_dir=adapters[index], policy_id=str(index))
        for _ in range(2):  # the second time from the shelf
            assert answers(policy, requests) == expected[index]


def test_engines_of_one_process_keep_apart(policy: VllmPolicy, engines: tuple[VllmPolicy, VllmPolicy]) -> None:
    rng, length = np.random.default_rng(1), 50
    requests = [greedy(str(index), rng.integers(5, 400, length).astype(np.int32), 8) for index in range(10)]
    expected = answers(transformers_policy(), requests)
    for is_known in (False, True):
        for engine in engines:
            before = engine.stats.tokens_prefilled
            assert answers(engine, requests) == expected
            assert engine.stats.tokens_prefilled - before == len(requests) * (1 if is_known else length)


def num_shared(one: list[int], other: list[int]) -> int:
    return int(np.cumprod([a == b for a, b in zip(one, other, strict=False)]).sum())


def test_the_shelf_finds_the_longest_common_beginning_and_keeps_what_is_used() -> None:
    from pipeline_lib.policy.vllm_engine.cache_shelf import Shelf

    rng = np.random.default_rng(0)
    caches = [torch.randn(500, 2, 4, 6, generator=torch.Generator().manual_seed(0)), torch.zeros(500, 3).bfloat16()]
    caches[1] += torch.arange(500)[:, None]
    shelf = Shelf(caches, max_blocks=20)
    kept: list[tuple[bytes, list[int], int]] = []  # the reference: in the order of their last use

    def some() -> tuple[bytes, list[int]]:
        return bytes([rng.integers(4)]), rng.integers(3, size=rng.integers(1, 7)).tolist()

    def take_the_best(before: bytes, token_ids: list[int], target: int) -> int:
        """Tokens that the copy which went to `target` shares; it is one of those that share the most."""
        lengths = [num_shared(ids, token_ids) if key == before else 0 for key, ids, _ in kept]
        most, place = shelf.find(before, token_ids)
        assert most == max(lengths, default=0)
        if most:
            shelf.take(place, target)
            best = [kept[index] for index, length in enumerate(lengths) if length == most]
            (taken,) = [each for each in best if torch.equal(caches[0][each[2]], caches[0][target])]
            assert torch.equal(caches[1][taken[2]], caches[1][target])
            kept.remove(taken)
            kept.append(taken)
        return most

    for block in range(400):
        before, token_ids = some()
        if take_the_best(before, token_ids, 400) < len(token_ids):
            kept = [*kept[-19:], (before, token_ids, block)]
        shelf.keep(before, token_ids, block)
        take_the_best(*some(), 401 + block % 99)
    assert len(kept) == 20
    shelf.clear()
    assert shelf.find(kept[0][0], kept[0][1])[0] == 0
