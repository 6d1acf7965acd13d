"""A registered model in the hands of other programs: by its name in the registry, and as an exported folder."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from export_fixtures import (
    COMMIT,
    HUB_NAME,
    champion_on,
    expected_answers,
    hub_cache,
    plain_answers,
    register,
)

from deployments.command import app as cli
from pipeline_lib.config import Settings
from pipeline_lib.policy.model_folders import TINY_BASE, fingerprint
from pipeline_lib.tracking import registered_champion, tracking_uri
from pipeline_lib.types import PolicyRef

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]
PRESETS = {"tiny": "tiny", "gsm8k": "folder", "math": HUB_NAME}  # champions on each kind of base
FULL = "gsm8k-24gb"


@dataclass(frozen=True)
class House:
    """A home with a champion per preset, and what each was trained as."""

    settings: Settings
    hf_home: Path
    adapters: dict[str, Path]
    base_folder: Path


@pytest.fixture(scope="module")
def house(new_home: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home, folder = new_home(), tmp_path_factory.mktemp("adapters")
    settings, base_folder = Settings(home=home), folder / "own-base"
    shutil.copytree(TINY_BASE, base_folder)
    hf_home = hub_cache(folder / "hf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hf_home / "hub"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        adapters = {
            "tiny": champion_on(settings, folder, preset="tiny", model="tiny"),
            "gsm8k": champion_on(settings, folder, preset="gsm8k", model=str(base_folder)),
            "math": champion_on(settings, folder, preset="math", model=HUB_NAME, revision=COMMIT),
        }
        yield House(settings, hf_home, adapters, base_folder)


def coppice(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["coppice", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_plain_programs_load_every_champion_and_every_export_and_answer_alike(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {preset: expected_answers(adapter) for preset, adapter in house.adapters.items()}
    assert len({json.dumps(found) for found in [*expected.values(), expected_answers(None)]}) == 4
    for preset in PRESETS:
        assert coppice(monkeypatch, "export", "--champion", "--preset", preset, "--output", str(tmp_path / preset)) == 0
    merged = tmp_path / "merged"
    assert coppice(monkeypatch, "export", "--champion", "--merge", "--output", str(merged)) == 0
    shown = capsys.readouterr()
    assert f"wrote merged weights of coppice-tiny version 1 to {merged}" in shown.out
    assert "it/s" not in shown.err  # no bars of the libraries' own
    registered = {preset: f"models:/coppice-{preset}@champion" for preset in PRESETS}
    found = plain_answers(
        tmp_path,
        adapters=[*registered.values(), *(str(tmp_path / preset) for preset in PRESETS)],
        models=[str(merged)],
        tokenizer=TINY_BASE,
        MLFLOW_TRACKING_URI=tracking_uri(house.settings),
        HF_HOME=str(house.hf_home),
        HF_HUB_OFFLINE="1",
    )
    assert found == {
        **{registered[preset]: expected[preset] for preset in PRESETS},
        **{str(tmp_path / preset): expected[preset] for preset in PRESETS},
        str(merged): expected["tiny"],
    }


def test_an_export_is_whole_and_its_card_says_what_it_is(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert coppice(monkeypatch, "export", "--champion", "--output", str(tmp_path / "out")) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing beside it
    out = tmp_path / "out"
    assert {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "base"} <= {
        path.name for path in out.iterdir()
    }
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1]
    assert fingerprint(out / "base") == fingerprint(TINY_BASE)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(out / "base")
    card = (out / "README.md").read_text()
    for text in (
        'license: "apache-2.0"',
        "# coppice-tiny, version 1",
        f"`{fingerprint(house.adapters['tiny'])}`",
        "| tiny-word | test | accuracy | 70.0% | 60.0% – 80.0% |",
        f"| trees | `{'f' * 64}` |",
        f"| test/tiny-word | `{'e' * 64}` |",
        "iteration 1",
        'AutoPeftModelForCausalLM.from_pretrained("DIR")',
        "vllm serve DIR/base --host 127.0.0.1 --dtype float32 ",
        "--enable-lora --max-lora-rank 8 --lora-modules policy=DIR",
    ):
        assert text in card


def test_a_hub_base_is_named_by_its_commit_and_a_run_is_exported_by_its_id(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = registered_champion(house.settings, "math")
    assert champion is not None
    run_id = champion.tags["coppice.run_id"]
    out = tmp_path / "out"
    assert coppice(monkeypatch, "export", "--run", run_id, "--output", str(out)) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (HUB_NAME, COMMIT)
    assert not (out / "base").exists()
    card = (out / "README.md").read_text()
    assert f'base_model: "{HUB_NAME}"' in card
    assert f'from_pretrained("DIR")' in card  # noqa: F541
    assert f"vllm serve {HUB_NAME} --revision {COMMIT}" in card


def test_full_weights_are_exported_as_they_are(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(TINY_BASE, trained, ignore=shutil.ignore_patterns("README.md"))
    policy = PolicyRef(policy_id=fingerprint(trained), base_model="tiny", adapter_uri="train-policy/y", iteration=1)
    register(house.settings, FULL, "tiny", policy, trained)
    out = tmp_path / "out"
    assert coppice(monkeypatch, "export", "--champion", "--preset", FULL, "--output", str(out)) == 0
    assert (out / "model.safetensors").read_bytes() == (TINY_BASE / "model.safetensors").read_bytes()
    assert "all weights, trained from `tiny`" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "export: name one of --champion and --run ID"),
        (("--champion", "--preset", "math-24gb"), "coppice-math-24gb has no champion: no run has ended"),
        (("--run", "0" * 32), "it is unknown or has not finished"),
        (("--champion", "--push-to-hub", "a/b/c"), "--push-to-hub a/b/c: Repo id must"),
        (("--champion", "--push-to-hub", "a/b"), "--push-to-hub a/b: HF_HUB_OFFLINE is set"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    house: House,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert coppice(monkeypatch, "export", *arguments, "--output", str(tmp_path / "out")) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_written_to(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").touch()
    assert coppice(monkeypatch, "export", "--champion", "--output", str(tmp_path)) == 2
    assert capsys.readouterr().err == f"coppice: --output {tmp_path}: there is something already; name a new folder\n"


def test_an_export_that_fails_leaves_nothing(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def burn(*_: object) -> str:
        raise OSError("the disk is on fire")

    monkeypatch.setattr("deployments.export.model_card", burn)
    assert coppice(monkeypatch, "export", "--champion", "--output", str(tmp_path / "out")) == 1
    assert list(tmp_path.iterdir()) == []


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs: a repository, and one commit of files."""

    files: ClassVar[dict[str, bytes]] = {}
    calls: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.calls.append((self.path, self.headers.get("Authorization", "")))
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry: Any = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = b64decode(entry["value"]["content"])
            self.answer({"commitUrl": "http://127.0.0.1/a/b/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.answer({"url": "http://127.0.0.1/a/b", "name": "a/b", "id": "a/b"})

    def do_GET(self) -> None:
        self.calls.append((self.path, self.headers.get("Authorization", "")))
        self.answer({"id": "a/b", "sha": "1" * 40, "siblings": [], "tags": [], "private": True})

    def answer(self, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on loopback, and a token for it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_a-token-of-this-test")
    Hub.files.clear()
    Hub.calls.clear()
    yield Hub
    server.shutdown()
    server.server_close()


def test_an_export_is_uploaded_whole(
    house: House,
    hub: type[Hub],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    order = ("export", "--champion", "--push-to-hub", "a/b", "--output", str(out))
    assert coppice(monkeypatch, *order) == 2
    assert (
        "the adapter's base, tiny, is a folder of this machine, where nobody else finds it" in capsys.readouterr().err
    )
    assert coppice(monkeypatch, *order, "--merge") == 0
    assert "uploaded to http://127.0.0.1" in capsys.readouterr().out
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert {key for _, key in hub.calls} == {"Bearer hf_a-token-of-this-test"}


def test_a_hub_that_does_not_answer_leaves_the_export(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_a-token-of-this-test")
    out = tmp_path / "out"
    assert coppice(monkeypatch, "export", "--champion", "--merge", "--push-to-hub", "a/b", "--output", str(out)) == 2
    shown = capsys.readouterr().err
    assert f"the export is whole, `hf upload a/b {out}` sends it again" in shown
    assert (shown.count("\n"), (out / "model.safetensors").is_file()) == (1, True)
    assert "hf_a-token" not in shown
