"""vLLM in this process against the transformers backend: the same tokens from another engine."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM
from vllm_fixtures import (
    NEEDS_VLLM,
    TINY,
    answers,
    paired_difference,
    tiny_requests,
    transformers_policy,
    write_adapter,
)

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.policy import Reloadable, SampleRequest, SamplingParams, sample_all
from pipeline_lib.policy.adapters import StaleWeightsError
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.policy.tokenizers import load_codec, load_tokenizer
from pipeline_lib.policy.vllm_engine.vllm_policy import VllmPolicy

pytestmark = NEEDS_VLLM


def vllm_options(**options: object) -> PolicyConfig:
    return TINY.model_copy(update={"vllm": TINY.vllm.model_copy(update={"merge_adapters": False} | options)})


BESIDE = vllm_options()


def open_vllm(config: PolicyConfig = BESIDE, *, lora_rank: int = 4, model_dir: Path = TINY_BASE) -> VllmPolicy:
    codec = load_codec(model_dir, config)
    return VllmPolicy(model_dir, policy_id="test", config=config, codec=codec, lora_rank=lora_rank)


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmPolicy]:
    """One engine for all of them: it can be given other weights."""
    policy = open_vllm()
    yield policy
    policy.close()


@pytest.fixture
def policy(engine: VllmPolicy) -> VllmPolicy:
    """The engine with the base alone."""
    engine.load(TINY_BASE, adapter_dir=None, policy_id="base")
    return engine


def some_ids(policy: VllmPolicy) -> np.ndarray:
    return tiny_requests(policy, 1)[0].token_ids


def random_ids(count: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 400, count).astype(np.int32)


def test_greedy_tokens_equal_those_of_the_transformers_backend(policy: VllmPolicy) -> None:
    requests = tiny_requests(policy, 200)
    assert answers(policy, requests) == answers(transformers_policy(), requests)


def test_adapters_change_without_a_restart(policy: VllmPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_restart(*_: object) -> None:
        raise AssertionError("the engine was started again")

    monkeypatch.setattr(type(policy._engine), "_start", no_restart)
    first, second = (write_adapter(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    requests = tiny_requests(policy, 40)
    expected = {adapter: answers(transformers_policy(adapter), requests) for adapter in (None, first, second)}
    assert expected[None] != expected[first] != expected[second] != expected[None]
    for adapter in (None, first, second, None, first):
        policy.load(TINY_BASE, adapter_dir=adapter, policy_id="next")
        assert answers(policy, requests) == expected[adapter]


def test_an_engine_that_kept_its_old_weights_is_found_out(
    policy: VllmPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (write_adapter(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    policy.load(TINY_BASE, adapter_dir=first, policy_id="first")
    llm_engine = policy._engine._engine
    stale = policy._engine._lora
    add_request = llm_engine.add_request

    def add_stale_request(*arguments: object, **named: object) -> object:
        return add_request(*arguments, **(named | {"lora_request": stale}))

    monkeypatch.setattr(llm_engine, "remove_lora", lambda _: True)
    monkeypatch.setattr(llm_engine, "add_request", add_stale_request)
    with pytest.raises(StaleWeightsError, match=r"was given .*2 .*still answers as with"):
        policy.load(TINY_BASE, adapter_dir=second, policy_id="second")
    monkeypatch.undo()
    policy.load(TINY_BASE, adapter_dir=second, policy_id="second")  # on an engine of its own
    requests = tiny_requests(policy, 10)
    assert answers(policy, requests) == answers(transformers_policy(second), requests)


def test_sampled_accuracy_agrees_with_the_transformers_backend(policy: VllmPolicy) -> None:
    requests = tiny_requests(policy, 100, temperature=1.0, num_samples=4)
    low, high = paired_difference(policy, answers(policy, requests), answers(transformers_policy(), requests))
    assert low < 0 < high
    assert high - low < 0.15


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "min_p"),
    [(1.0, 1.0, 0, 0.0), (0.7, 0.9, 0, 0.0), (1.5, 0.9, 20, 0.0), (1.5, 1.0, 0, 0.05)],
)
def test_first_tokens_are_drawn_from_the_softmax(
    policy: VllmPolicy, temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    prompt, count = random_ids(60, seed=0), 2000
    params = SamplingParams(1, temperature, top_p, top_k, min_p)
    results = sample_all(policy, [SampleRequest(str(i), prompt, params, i) for i in range(count)])
    end = policy.codec.tokenizer.eos_token_id
    drawn = Counter((*result.token_ids.tolist(), end)[0] for result in results.values())
    model = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1].double()
    probs = torch.softmax(logits / temperature, -1).sort(descending=True)
    left = torch.where(probs.values >= min_p * probs.values[0], probs.values, 0.0)
    left[top_k or len(left) :] = 0.0
    left /= left.sum()
    kept = (left.cumsum(-1) - left < top_p) & (left > 0)
    nucleus = probs.values[kept] / probs.values[kept].sum()
    expected = dict(zip(probs.indices[kept].tolist(), nucleus.tolist(), strict=True))
    assert set(drawn) <= set(expected)
    common = [token for token, share in expected.items() if share * count >= 5]
    observed = [drawn[token] for token in common]
    rest = count - sum(observed)
    shares = [expected[token] for token in common]
    if rest:
        observed, shares = [*observed, rest], [*shares, 1 - sum(shares)]
    assert len(observed) >= 3
    assert chisquare(observed, np.array(shares) / sum(shares) * count).pvalue > 1e-3


@pytest.mark.parametrize("stop", [(), ("\n",)])
def test_log_probabilities_equal_those_of_the_transformers_backend(policy: VllmPolicy, stop: tuple[str, ...]) -> None:
    plain = SamplingParams(60, 0.0)
    requests = [replace(each, params=replace(plain, logprobs=True)) for each in tiny_requests(policy, 40)]
    engines = [policy, transformers_policy()]
    codecs = [engine.codec for engine in engines]
    for engine in engines:
        engine.codec = load_codec(TINY_BASE, TINY.model_copy(update={"stop": stop}))
    ours, theirs = (sample_all(engine, requests) for engine in engines)
    policy.codec = codecs[0]
    assert all((result.num_chars is not None) == bool(stop) for result in theirs.values())
    for name, result in ours.items():
        assert result.token_ids.tolist() == theirs[name].token_ids.tolist()
        assert result.logprobs == pytest.approx(theirs[name].logprobs, abs=1e-4)
    assert sample_all(policy, tiny_requests(policy, 1))["0/0"].logprobs is None


def test_log_probabilities_are_the_models_own_whatever_cuts_its_tokens(policy: VllmPolicy) -> None:
    params = SamplingParams(30, 1.5, 0.9, 20, 0.01, logprobs=True)
    requests = [replace(each, params=params) for each in tiny_requests(policy, 12)]
    model = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    results = sample_all(policy, requests)
    for request in requests:
        result = results[request.request_id]
        ids = torch.from_numpy(np.concatenate([request.token_ids, result.token_ids]).astype(np.int64))[None]
        with torch.inference_mode():
            logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(request.token_ids)
        expected = logprobs[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]
        assert result.logprobs == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_request_sent_again_gives_the_same_tokens(policy: VllmPolicy) -> None:
    requests = tiny_requests(policy, 60, temperature=1.0)
    once = answers(policy, requests)
    again = answers(policy, requests[::-1])
    assert sum(once[name] == again[name] for name in once) >= 0.95 * len(once)
    other_seeds = [SampleRequest(r.request_id, r.token_ids, r.params, r.seed + 1) for r in requests]
    assert sum(once[name] == found for name, found in answers(policy, other_seeds).items()) < 0.9 * len(once)


def test_short_requests_come_back_while_a_long_one_runs_and_others_enter(policy: VllmPolicy) -> None:
    prompt = some_ids(policy)
    policy.submit([SampleRequest("long", prompt, SamplingParams(100, 0.0), 0)])
    order: list[str] = []
    for index in range(6):
        policy.submit([SampleRequest(f"short {index}", prompt, SamplingParams(2, 0.0), 0)])
        order += [result.request_id for result in policy.poll()]
    while policy.num_in_flight:
        order += [result.request_id for result in policy.poll()]
    assert order == [f"short {index}" for index in range(6)] + ["long"]


def test_a_prompt_that_was_seen_is_computed_once(policy: VllmPolicy) -> None:
    prompt = random_ids(100, seed=1)
    before = policy.stats.tokens_reused, policy.stats.tokens_prefilled
    for index in range(3):
        sample_all(policy, [SampleRequest(str(index), prompt, SamplingParams(4, 0.0), 0)])
    reused, computed = policy.stats.tokens_reused - before[0], policy.stats.tokens_prefilled - before[1]
    assert (reused, computed) == (2 * 99, 100 + 2 * 1)  # the last token has to be, for its logits


def test_requests_that_cannot_run_are_data(policy: VllmPolicy) -> None:
    full = np.concatenate([some_ids(policy)] * 40)[:1024]
    params = SamplingParams(8, 0.0)
    requests = [
        SampleRequest("too long", np.append(full, full[:1]), params, 0),
        SampleRequest("full", full, params, 0),
        SampleRequest("room for two", full[:1022], params, 0),
        SampleRequest("empty", full[:0], params, 0),
        SampleRequest("no such token", np.array([5, 99999], dtype=np.int32), params, 0),
        SampleRequest("bad nucleus", full[:20], SamplingParams(8, 1.0, top_p=-1.0), 0),
    ]
    found = answers(policy, requests)
    assert {name: reason for name, (reason, _) in found.items() if name != "room for two"} == {
        "too long": "length",
        "full": "length",
        "empty": "error",
        "no such token": "error",
        "bad nucleus": "error",
    }
    assert len(found["room for two"][1]) <= 2


def test_a_request_id_in_flight_is_refused_and_weights_stay_while_requests_run(policy: VllmPolicy) -> None:
    request = tiny_requests(policy, 1)[0]
    policy.submit([request])
    with pytest.raises(ValueError, match="in flight already"):
        policy.submit([request])
    for change in (lambda: policy.load(TINY_BASE, adapter_dir=None, policy_id="x"), policy.free_for_training):
        with pytest.raises(RuntimeError, match="1 requests are in flight"):
            change()
    assert [result.request_id for result in policy.poll()] == [request.request_id]


def test_what_vllm_refuses_is_one_line_and_leaves_a_usable_process(engine: VllmPolicy, tmp_path: Path) -> None:
    engine.load(TINY_BASE, adapter_dir=None, policy_id="base")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no adapter_config\.json"):
        engine.load(TINY_BASE, adapter_dir=tmp_path / "empty", policy_id="x")
    wrong = write_adapter(tmp_path / "wrong", seed=0)
    text = (wrong / "adapter_config.json").read_text().replace('"bias": "none"', '"bias": "all"')
    (wrong / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"cannot load .*wrong: .*bias"):
        engine.load(TINY_BASE, adapter_dir=wrong, policy_id="x")
    engine.close()
    for options, message in (
        ({"quantization": "nonsense"}, "cannot start on .*nonsense"),
        ({"tensor_parallel": 3}, "cannot start on"),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            open_vllm(vllm_options(**options))
        assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot load its tokenizer"):
        open_vllm(model_dir=tmp_path / "empty")
    with pytest.raises(ConfigError, match="torch sees no CUDA device"):
        open_vllm(TINY.model_copy(update={"device": "cuda"}))
    engine.load(TINY_BASE, adapter_dir=None, policy_id="base")
    assert len(answers(engine, tiny_requests(engine, 4))) == 4


def test_full_weights_and_a_larger_adapter_get_an_engine_of_their_own(engine: VllmPolicy, tmp_path: Path) -> None:
    engine.close()
    policy = open_vllm(vllm_options(keep_while_training=False), lora_rank=0)
    assert isinstance(policy, Reloadable)
    policy.free_for_training()
    assert policy._engine._engine is None
    full = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    with torch.no_grad():
        full.lm_head.weight *= 0.5 + torch.rand(full.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    full.save_pretrained(tmp_path / "full")
    load_tokenizer(TINY_BASE, TINY).save_pretrained(tmp_path / "full")
    adapter = write_adapter(tmp_path / "adapter", seed=3)
    requests = tiny_requests(policy, 20)
    for model_dir, adapter_dir in ((tmp_path / "full", None), (TINY_BASE, adapter)):
        policy.load(model_dir, adapter_dir=adapter_dir, policy_id="next")
        assert answers(policy, requests) == answers(transformers_policy(adapter_dir, model_dir), requests)
    policy.close()


def test_on_a_cpu_adapters_are_merged_and_nothing_is_left_of_that(
    engine: VllmPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.close()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    adapter, unchanged = write_adapter(tmp_path / "1", seed=1), write_adapter(tmp_path / "0", seed=0, scale=0.0)
    policy = open_vllm(TINY)
    requests = tiny_requests(policy, 40)
    try:
        for given in (adapter, None, adapter):
            policy.load(TINY_BASE, adapter_dir=given, policy_id="next")
            assert answers(policy, requests) == answers(transformers_policy(given), requests)
        policy.load(TINY_BASE, adapter_dir=None, policy_id="base")
        same = policy._engine._engine
        policy.load(TINY_BASE, adapter_dir=unchanged, policy_id="unchanged")
        assert policy._engine._engine is same
    finally:
        policy.close()
    assert not list((tmp_path / "tmp").glob("coppice-*"))
