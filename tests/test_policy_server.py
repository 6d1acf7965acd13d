"""The server backend against small HTTP servers that die, hang, refuse and forget; vLLM is elsewhere."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoint_fixtures import BASE, END, ScriptedEndpoint, scripted_tokens, server_config, server_policy
from safetensors.numpy import save_file
from server_fixtures import wait_until

from pipeline_lib.config import ConfigError, PipelineConfig, apply_overrides
from pipeline_lib.policy import Reloadable, SampleRequest, SamplingParams, sample_all
from pipeline_lib.policy.adapters import StaleWeightsError
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.policy.server_engine.endpoint_pool import EndpointsDownError
from pipeline_lib.policy.server_engine.server_policy import ServerPolicy

KEY = "sk-very-secret"
Make = Callable[..., ScriptedEndpoint]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes endpoints that end with the test."""
    made: list[ScriptedEndpoint] = []

    def one(**options: Any) -> ScriptedEndpoint:
        made.append(ScriptedEndpoint(**options))
        return made[-1]

    yield one
    for endpoint in made:
        endpoint.stop()


def requests(count: int, *, max_new_tokens: int = 20) -> list[SampleRequest]:
    rng = np.random.default_rng(0)
    params = SamplingParams(max_new_tokens, 1.0)
    prompts = [rng.integers(5, 400, 12).astype(np.int32) for _ in range(count)]
    return [SampleRequest(f"r{i}", prompt, params, 2**62 + i) for i, prompt in enumerate(prompts)]


def expected(asked: list[SampleRequest], model: str = BASE) -> dict[str, list[int]]:
    return {
        r.request_id: scripted_tokens(
            model,
            {"prompt": r.token_ids.tolist(), "seed": r.seed, "temperature": 1.0, "max_tokens": r.params.max_new_tokens},
        )
        for r in asked
    }


def sampled(policy: ServerPolicy, asked: list[SampleRequest]) -> dict[str, list[int]]:
    return {name: result.token_ids.tolist() for name, result in sample_all(policy, asked).items()}


def drain(policy: ServerPolicy) -> None:
    while policy.num_in_flight:
        policy.poll()


def write_adapter(folder: Path, value: float) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 2}', encoding="utf-8")
    save_file({"layer.lora_B.weight": np.full((2, 1), value, np.float32)}, folder / "adapter_model.safetensors")
    return folder


def test_requests_are_spread_by_load_and_answers_are_the_servers(make: Make) -> None:
    quick, slow = make(), make(delay_s=0.5)
    asked = requests(100)
    with server_policy(server_config(quick.url, f"{slow.url}/v1/")) as policy:
        assert isinstance(policy, Reloadable)
        assert sampled(policy, asked) == expected(asked)
        stats = policy.stats
    assert max(quick.most_in_flight, slow.most_in_flight) <= 8  # policy.max_batch is 16, over both
    assert slow.most_in_flight >= 6
    assert len(quick.asked) > len(slow.asked) > 0
    assert len(quick.asked) + len(slow.asked) == 100
    assert (stats.tokens_reused, stats.tokens_prefilled) == (200, 1000)
    assert 0 < stats.slot_steps <= stats.capacity_steps
    body = quick.asked[0]
    assert body["seed"] >= 2**62
    assert body["stop_token_ids"] == [END]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)


def test_an_endpoint_that_dies_loses_nothing_and_is_used_again_once_it_is_back(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = make(delay_s=0.02), make(delay_s=0.02)
    prepared, found = requests(3000), {}
    asked = prepared[:300]
    with server_policy(server_config(one.url, other.url)) as policy, caplog.at_level(logging.WARNING):
        policy.submit(asked)
        num_before, is_started = None, False
        while policy.num_in_flight:
            for result in policy.poll():
                assert result.request_id not in found
                found[result.request_id] = result.token_ids.tolist()
            if len(found) >= 60 and num_before is None:
                one.die()
                num_before = len(one.asked)
            elif len(found) >= 120 and not is_started:
                one.start()
                is_started = True
            elif is_started and len(one.asked) < num_before + 30:  # however long it takes until it is asked again
                more = prepared[len(asked) : len(asked) + 8]
                asked = asked + more
                policy.submit(more)
    assert found == expected(asked)
    assert len(one.asked) >= num_before + 30
    assert len(one.asked) + len(other.asked) <= len(asked) + 8  # what was in flight on it was asked twice
    texts = [record.getMessage() for record in caplog.records if "policy.server" in record.getMessage()]
    assert [text.split(" is ")[1][:4] for text in texts] == ["lost", "back"]


def test_a_hung_endpoint_is_given_up_after_the_timeout(make: Make) -> None:
    hung, other = make(delay_s=1e3), make()
    asked = requests(30)
    with server_policy(server_config(hung.url, other.url, timeout_s=1.0, recheck_s=30)) as policy:
        assert sampled(policy, asked) == expected(asked)
    assert len(hung.asked) >= 8


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for_without_end(make: Make, status: int) -> None:
    told: list[int] = []

    def busy(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        if "seed" in body and len(told) < 2:
            told.append(status)
            return status, {"error": {"message": "later"}}
        return None

    only = make(intercept=busy)
    asked = requests(3)
    with server_policy(server_config(only.url, retries=0)) as policy:
        assert sampled(policy, asked) == expected(asked)
    assert len(told) == 2


def test_a_request_that_ends_every_server_is_data_after_some_retries(make: Make) -> None:
    def crash(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        return (500, {"error": {"message": "engine died"}}) if body.get("seed") == 2**62 + 1 else None

    one, other = make(intercept=crash), make(intercept=crash)
    asked = requests(6)
    with server_policy(server_config(one.url, other.url, retries=2)) as policy:
        found = sample_all(policy, asked)
    assert [name for name, result in found.items() if result.finish_reason == "error"] == ["r1"]
    assert all(found[name].token_ids.tolist() == ids for name, ids in expected(asked).items() if name != "r1")


def test_a_server_that_is_stopped_while_it_samples_is_asked_elsewhere(make: Make) -> None:
    def stopped(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        return (200, {"choices": [{"token_ids": [7], "finish_reason": "abort"}]}) if "seed" in body else None

    one, other = make(intercept=stopped), make()
    asked = requests(20)
    with server_policy(server_config(one.url, other.url, recheck_s=30, retries=50)) as policy:
        assert sampled(policy, asked) == expected(asked)


def test_with_no_endpoint_left_the_run_waits_and_then_says_so(make: Make) -> None:
    only = make(delay_s=0.05)
    with server_policy(server_config(only.url, patience_s=0.3)) as policy:
        policy.submit(requests(40))
        policy.poll()
        only.die()
        with pytest.raises(EndpointsDownError, match=rf"no endpoint has answered for 0.3 s \({only.url}: .+\); start"):
            drain(policy)
    with server_policy(server_config(make().url)) as policy:
        assert policy.poll() == []


def test_one_that_is_away_at_the_start_joins_later(make: Make) -> None:
    away, other = make(), make(delay_s=0.02)
    away.die()
    with server_policy(server_config(away.url, other.url)) as policy:
        policy.submit(requests(20))
        policy.poll()
        away.start()
        drain(policy)
        wait_until(lambda: bool(sample_all(policy, requests(20))) and bool(away.asked), "it is asked")


def test_adapters_are_named_by_content_loaded_everywhere_and_again_where_they_are_forgotten(
    make: Make, tmp_path: Path
) -> None:
    endpoints = [make(), make()]
    first, second = (write_adapter(tmp_path / name, value) for name, value in (("first", 1.0), ("second", 2.0)))
    asked = requests(24)
    with server_policy(server_config(*(e.url for e in endpoints))) as policy:
        policy.load(TINY_BASE, adapter_dir=first, policy_id="first")
        assert policy.policy_id == "first"
        name_of = {path: name for name, path in endpoints[0].adapters.items()}
        assert sampled(policy, asked) == expected(asked, name_of[str(first)])
        policy.load(TINY_BASE, adapter_dir=second, policy_id="second")
        assert endpoints[0].adapters == endpoints[1].adapters
        name_of = {path: name for name, path in endpoints[0].adapters.items()}
        endpoints[0].adapters.clear()  # as a server that was started again
        assert sampled(policy, asked) == expected(asked, name_of[str(second)])
        wait_until(lambda: set(endpoints[0].adapters.values()) == {str(second)}, "it has the adapter again")
        policy.load(TINY_BASE, adapter_dir=write_adapter(tmp_path / "none", 0.0), policy_id="none")
        assert sampled(policy, asked) == expected(asked, BASE)
        policy.load(TINY_BASE, adapter_dir=None, policy_id="base")
        assert sampled(policy, asked) == expected(asked, BASE)


def test_an_endpoint_that_answers_with_other_weights_is_found_out(make: Make, tmp_path: Path) -> None:
    only = make()
    with server_policy(server_config(only.url)) as policy:
        only.intercept = lambda path, body: (
            only.reply(path, body | {"model": BASE}, None) if body.get("model", BASE) != BASE else None
        )
        adapter = write_adapter(tmp_path / "adapter", 1.0)
        with pytest.raises(StaleWeightsError, match=rf"{only.url} was given .*adapter \(.*still answers as with"):
            policy.load(TINY_BASE, adapter_dir=adapter, policy_id="next")


def test_weights_stay_while_requests_run_and_ids_are_unique(make: Make) -> None:
    with server_policy(server_config(make(delay_s=0.1).url)) as policy:
        (request,) = requests(1)
        policy.submit([request])
        with pytest.raises(ValueError, match="in flight already"):
            policy.submit([request])
        for change in (lambda: policy.load(TINY_BASE, adapter_dir=None, policy_id="x"), policy.free_for_training):
            with pytest.raises(RuntimeError, match="1 requests are in flight"):
                change()
        assert [result.request_id for result in policy.poll()] == ["r0"]
        policy.free_for_training()


def test_requests_that_cannot_run_are_data(make: Make) -> None:
    def refuse(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        return (400, {"error": {"message": "top_p"}}) if body.get("top_p") == -1.0 else None

    full = np.full(1024, 7, np.int32)
    params = SamplingParams(8, 1.0)
    with server_policy(server_config(make(intercept=refuse).url)) as policy:
        found = sample_all(
            policy,
            [
                SampleRequest("too long", np.append(full, full[:1]), params, 0),
                SampleRequest("full", full, params, 0),
                SampleRequest("room for two", full[:1022], params, 0),
                SampleRequest("empty", full[:0], params, 0),
                SampleRequest("no such token", np.array([5, 99999], np.int32), params, 0),
                SampleRequest("bad nucleus", full[:20], SamplingParams(8, 1.0, top_p=-1.0), 0),
            ],
        )
    assert len(found.pop("room for two").token_ids) <= 2
    assert {name: str(result.finish_reason) for name, result in found.items()} == {
        "too long": "length",
        "full": "length",
        "empty": "error",
        "no such token": "error",
        "bad nucleus": "error",
    }


def no_token_ids(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    return (200, {"choices": [{"text": "x"}]}) if path == "/v1/completions" else None


def other_tokens(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    is_text = isinstance(body.get("prompt"), str)
    return (200, {"choices": [{"token_ids": [5], "prompt_token_ids": [1, 2]}]}) if is_text else None


@pytest.mark.parametrize(
    ("endpoint", "options", "said"),
    [
        ({"intercept": no_token_ids}, {}, "returns no token ids; it must be vLLM"),
        ({"intercept": other_tokens}, {}, "serves another model than policy.model"),
        (
            {"intercept": lambda path, body: (404, {"detail": "Not Found"})},
            {},
            "urls: http.*: Not Found; start `vllm serve`",
        ),
        ({"intercept": lambda path, body: (400, {"detail": "no"})}, {}, "does not take Coppice's requests: no"),
        ({"intercept": lambda path, body: (200, {"ok": 1})}, {}, "does not answer as vLLM's server does"),
        (
            {"max_model_len": 256},
            {},
            r"max_context_tokens=1024: .* has room for 256; start it with --max-model-len 1024",
        ),
        ({}, {"model_name": "mine"}, "model_name=mine: http.* serves base$"),
        ({"api_key": KEY}, {}, "refuses the API key; it is read from COPPICE_SERVER_API_KEY"),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_one_line(
    make: Make, endpoint: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    config = server_config(make(**endpoint).url, **options)
    with pytest.raises(ConfigError, match=said) as refused, server_policy(config, api_key="sk-wrong-key"):
        pass
    assert "\n" not in str(refused.value)
    assert "sk-" not in str(refused.value)


def test_no_endpoint_at_the_start_no_address_and_full_weights_are_one_line(make: Make, tmp_path: Path) -> None:
    gone = make()
    gone.die()
    with pytest.raises(ConfigError, match=rf"urls: {gone.url}: .+; start `vllm serve` there"):
        server_policy(server_config(gone.url)).__enter__()
    with pytest.raises(ConfigError, match="names no endpoint"):
        server_policy(server_config()).__enter__()
    with server_policy(server_config(make().url)) as policy, pytest.raises(ConfigError, match="its API takes adapters"):
        policy.load(tmp_path, adapter_dir=None, policy_id="full")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((404, {"error": {"message": "Not Found"}}), "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 --enable-lora"),
        (
            (500, {"error": {"message": "rank 16 is greater\n than 8"}}),
            "cannot load the adapter .*: rank 16 is greater than 8",
        ),
    ],
)
def test_an_adapter_that_cannot_be_loaded_is_one_line(make: Make, tmp_path: Path, reply: Any, said: str) -> None:
    only = make(intercept=lambda path, body: reply if path == "/v1/load_lora_adapter" else None)
    adapter = write_adapter(tmp_path / "adapter", 1.0)
    with pytest.raises(ConfigError, match=said):
        server_policy(server_config(only.url), adapter_dir=adapter).__enter__()


def test_the_key_is_sent_and_never_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def echo(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        return (500, {"error": {"message": f"bad header Bearer {KEY}"}}) if "seed" in body else None

    only = make(api_key=KEY, intercept=echo)
    config = server_config(only.url, patience_s=0.2, retries=10**6)
    with caplog.at_level(logging.DEBUG), server_policy(config, api_key=KEY) as policy:
        only.intercept = echo
        policy.submit(requests(2))
        threading.Timer(0.2, only.die).start()
        with pytest.raises(EndpointsDownError) as refused:
            policy.poll()
    assert "bad header" in caplog.text
    assert KEY not in caplog.text + str(refused.value) + repr(config)


@pytest.mark.parametrize("url", ["ftp://host", "host:8000", "http://user:sk-1@host", "http://host?key=sk-1", "http://"])
def test_addresses_that_are_none_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.server\.urls") as refused:
        apply_overrides(PipelineConfig(), [f"policy.server.urls={url}"])
    assert "sk-1" not in str(refused.value)


def test_a_server_is_told_how_tokens_are_drawn(make: Make) -> None:
    endpoint = make()
    with server_policy(server_config(endpoint.url)) as policy:
        params = SamplingParams(4, 0.7, 0.9, 20, 0.05)
        sample_all(policy, [SampleRequest("a", np.array([5, 6], dtype=np.int32), params, 0)])
    drawn = {name: endpoint.asked[0][name] for name in ("temperature", "top_p", "top_k", "min_p")}
    assert drawn == {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05}


def test_log_probabilities_are_asked_for_and_handed_over_without_the_ends(make: Make) -> None:
    endpoint = make()
    asked = [replace(each, params=replace(each.params, logprobs=True)) for each in requests(20)]
    with server_policy(server_config(endpoint.url)) as policy:
        results = sample_all(policy, asked)
        assert sample_all(policy, requests(1))["r0"].logprobs is None
    assert [body.get("logprobs") for body in endpoint.asked] == [0] * 20 + [None]
    for name, ids in expected(asked).items():
        assert results[name].logprobs.tolist() == [-0.25 * index for index in range(len(ids))]


@pytest.mark.parametrize("given", [{}, {"logprobs": None}, {"logprobs": {"token_logprobs": [-1.0, None]}}])
def test_a_server_without_log_probabilities_is_one_line(make: Make, given: dict[str, Any]) -> None:
    choice = {"token_ids": [5, 6], "finish_reason": "length"} | given
    only = make(intercept=lambda path, body: (200, {"choices": [choice]}) if "seed" in body else None)
    asked = [replace(each, params=replace(each.params, logprobs=True)) for each in requests(3)]
    with server_policy(server_config(only.url)) as policy:
        assert len(sample_all(policy, requests(3))) == 3
        with pytest.raises(ConfigError, match=f"{only.url} gives no log-probabilities") as refused:
            sample_all(policy, asked)
    assert "\n" not in str(refused.value)
