"""Where a model's name leads, and what identifies its weights."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from pipeline_lib.config import ConfigError

TINY_BASE = Path(__file__).parent / "tiny_base"
WEIGHT_SUFFIXES = (".safetensors", ".json", ".jinja")


def model_path(name: str) -> Path | str:
    """The folder behind a model's name: ``tiny`` is the base that comes with Coppice, a hub name stays one.

    Raises:
        ConfigError: a path without a model.
    """
    if name == "tiny":
        return TINY_BASE
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"policy.model={name}: the folder holds no config.json; name a model folder")
        return path
    if name.startswith((".", "/", "~")):
        raise ConfigError(f"policy.model={name}: no such folder; name a model folder or a hub model")
    return name


@lru_cache(maxsize=64)
def fingerprint(folder: Path | str, revision: str | None = None) -> str:
    """16 hex digits over a folder's weights, configuration and tokenizer; of a hub name, over name and revision."""
    digest = hashlib.sha256()
    if isinstance(folder, str):
        digest.update(f"{folder}@{revision or 'main'}".encode())
        return digest.hexdigest()[:16]
    for file in sorted(folder.iterdir()):
        if file.suffix in WEIGHT_SUFFIXES:
            with file.open("rb") as stream:
                digest.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()[:16]
