"""Models and datasets from the hub: a server that answers as it does stands on loopback, and goes away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from server_fixtures import free_port

from pipeline_lib.config import ConfigError, PipelineConfig, apply_overrides
from pipeline_lib.policy import model_folders
from pipeline_lib.policy.model_folders import TINY_BASE, model_commit, model_folder
from pipeline_lib.problems import hub as hub_module
from pipeline_lib.problems.sources import ProblemsError, load_problems

MODEL, DATASET, COMMIT, LATER = "coppice/tiny", "coppice/sums", "0" * 39 + "1", "0" * 39 + "2"
WEIGHTS = "model.safetensors"
ROWS = ({"question": "1+1?", "answer": "So 1+1=2.\n#### 2"}, {"question": "1+2?", "answer": "#### 3"})


class Hub:
    """One model, the embedded base, and one dataset of two rows; what was asked for is remembered."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.commit = COMMIT
        self.files = {path.name: path.read_bytes() for path in TINY_BASE.iterdir() if path.is_file()}
        rows = "".join(json.dumps(row) + "\n" for row in ROWS)
        self.repositories = {f"models/{MODEL}": self.files, f"datasets/{DATASET}": {"train.jsonl": rows.encode()}}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                hub.asked.append(self.path)
                body, headers = hub.find(self.path.partition("?")[0])
                self.send_response(200 if body is not None else 404)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def find(self, path: str) -> tuple[bytes | None, dict[str, str]]:
        for repository, files in self.repositories.items():
            if path.startswith(f"/api/{repository}/tree"):
                entries = [
                    {"type": "file", "path": name, "size": len(body), "oid": name} for name, body in files.items()
                ]
                return json.dumps(entries).encode(), {}
            if path.startswith(f"/api/{repository}"):
                siblings = [{"rfilename": name} for name in files]
                name = repository.partition("/")[2]
                return json.dumps({"id": name, "sha": self.commit, "siblings": siblings}).encode(), {}
            if path.startswith(f"/{repository.removeprefix('models/')}/resolve/"):
                name = path.rpartition("/")[2]
                if name not in files:
                    return None, {"X-Error-Code": "EntryNotFound"}
                return files[name], {"X-Repo-Commit": self.commit, "ETag": f'"{len(files[name])}-{name}"'}
        return None, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for module in ("huggingface_hub.constants.ENDPOINT", "datasets.config.HF_ENDPOINT"):
        monkeypatch.setattr(module, hub.url)
    files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    yield hub
    hub.close()


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_is_fetched_once_and_then_needs_no_network(hub: Hub) -> None:
    layout = model_folder(MODEL, weights=False)
    assert WEIGHTS not in read(layout)
    folder = model_folder(MODEL)
    assert read(folder)[WEIGHTS] == (TINY_BASE / WEIGHTS).read_bytes()
    assert read(folder)["tokenizer.json"] == (TINY_BASE / "tokenizer.json").read_bytes()
    hub.asked.clear()
    assert model_folder(MODEL) == model_folder(MODEL, weights=False) == folder
    assert hub.asked == []
    hub.close()
    assert model_folder(MODEL) == folder


def test_a_fetch_that_was_interrupted_is_finished(hub: Hub) -> None:
    index = {"weight_map": {"a": WEIGHTS, "b": "more.safetensors"}}
    hub.files |= {"model.safetensors.index.json": json.dumps(index).encode(), "more.safetensors": b"b"}
    folder = model_folder(MODEL)
    (folder / "more.safetensors").unlink()
    assert read(model_folder(MODEL))["more.safetensors"] == b"b"


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_what_another_program_fetched_in_part_is_finished(hub: Hub, missing: str) -> None:
    (model_folder(MODEL, weights=False) / missing).unlink()
    assert read(model_folder(MODEL, weights=False))[missing] == (TINY_BASE / missing).read_bytes()


def test_a_dataset_is_read_from_the_cache_when_the_hub_is_away(hub: Hub) -> None:
    def answers() -> list[str]:
        pool = load_problems("gsm8k", "train", path=f"hub:{DATASET}")
        assert pool.validation is None
        return [problem.answer for problem in pool]

    assert answers() == ["2", "3"]
    hub.close()
    started = time.monotonic()
    assert answers() == ["2", "3"]
    assert time.monotonic() - started < 10


def test_a_validation_split_of_the_hub_is_taken(hub: Hub) -> None:
    files = hub.repositories[f"datasets/{DATASET}"]
    files["valid.jsonl"] = json.dumps({"question": "2+2?", "answer": "#### 4"}).encode()
    validation = load_problems("gsm8k", "train", path=f"hub:{DATASET}").validation
    assert validation is not None
    assert [(p.problem_id, p.answer) for p in validation] == [("gsm8k/validation/00000", "4")]
    assert load_problems("gsm8k", "validation", path=f"hub:{DATASET}")[0].answer == "4"
    with pytest.raises(ProblemsError, match=r"^hub:coppice/sums has no split test, only train, validation;"):
        load_problems("gsm8k", "test", path=f"hub:{DATASET}")


def test_weights_in_another_format_are_refused(hub: Hub) -> None:
    hub.files["pytorch_model.bin"] = hub.files.pop(WEIGHTS)
    with pytest.raises(ConfigError, match=r"policy\.model=coppice/tiny: .* no weights as safetensors"):
        model_folder(MODEL)


@pytest.mark.parametrize("reason", ["no such model", "no hub"])
def test_what_cannot_be_had_is_said_in_one_line_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    if reason == "no hub":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(ProblemsError, match=r"^cannot load coppice/none \(train\) from the hub: .*$"):
        load_problems("gsm8k", "train", path="hub:coppice/none")
    with pytest.raises(ConfigError, match=r"^policy\.model=coppice/none: .*`hf download coppice/none`.*$") as error:
        model_folder("coppice/none")
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 10


def forget_commits() -> None:
    """As a new process: what was asked once is asked again."""
    model_folders._commit.cache_clear()
    hub_module._commit.cache_clear()


def test_a_models_commit_is_the_hubs_and_then_that_of_the_cache(hub: Hub) -> None:
    assert model_commit(MODEL) == COMMIT
    assert model_folder(MODEL).name == COMMIT
    hub.commit = LATER
    forget_commits()
    assert model_commit(MODEL) == COMMIT, "what was fetched is what is used"
    hub.close()
    forget_commits()
    assert model_commit(MODEL) == model_commit(MODEL, "main") == model_commit(MODEL, COMMIT) == COMMIT
    assert model_folder(MODEL, COMMIT).name == COMMIT
    assert model_commit(str(TINY_BASE)) is None


def draw_key(tmp_path: Path, split: str = "train") -> str:
    """Where the problems of a run on the hub's dataset lie, as a new process would look for them."""
    from tasks.problems import draw_problems, draw_test_problems

    forget_commits()
    config = apply_overrides(PipelineConfig(), ["problems.dataset=gsm8k", f"problems.path=hub:{DATASET}"])
    if split == "train":
        return draw_problems.entry(config=config, iteration=1).uri
    return draw_test_problems.entry(config=config, dataset="gsm8k", path=f"hub:{DATASET}").uri


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_datasets_commit_is_in_the_key_of_what_is_drawn(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path))
    before = draw_key(tmp_path, split)
    assert draw_key(tmp_path, split) == before
    hub.commit = LATER
    after = draw_key(tmp_path, split)
    assert after != before
    load_problems("gsm8k", "train", path=f"hub:{DATASET}")  # now the cache has the later one
    hub.close()
    assert draw_key(tmp_path, split) == after


def test_the_rows_that_are_read_are_those_of_the_commit_that_was_named(hub: Hub) -> None:
    assert hub_module.hub_commit(DATASET) == COMMIT
    name = f"/datasets/{DATASET}/resolve/"
    load_problems("gsm8k", "train", path=f"hub:{DATASET}")
    resolved = {path.removeprefix(name).partition("/")[0] for path in hub.asked if path.startswith(name)}
    assert resolved == {COMMIT}, "no branch is read, which may have moved on"
    hub.close()
    forget_commits()
    assert hub_module.hub_commit(DATASET) == COMMIT
    assert hub_module.hub_commit("coppice/none") is None
