"""From a GGUF file to a model folder in float32: configuration, weights as safetensors, tokenizer, chat template."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import shutil
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from pipeline_lib.config import ConfigError
from pipeline_lib.config.one_line import first_line
from pipeline_lib.distribution import missing_module

LOGGER = logging.getLogger("coppice.progress")


def folder_of_gguf(file: Path, models: Path) -> Path:
    """The folder that a GGUF file becomes: made by the first who asks, named after the file and its content.

    Args:
        file: the GGUF file, of an architecture that transformers reads.
        models: where such folders are kept.

    Raises:
        ConfigError: the file is missing or cannot be read, or the package `gguf` is not installed.
    """
    if not file.is_file():
        raise ConfigError(f"policy.model={file}: no such file; name a .gguf file or a model folder")
    stat = file.stat()
    folder = models.resolve() / f"{file.stem}-{_digest(file, stat.st_size, stat.st_mtime_ns)}"
    if not folder.is_dir():
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _make(file, folder)
    return folder


@lru_cache(maxsize=8)
def _digest(file: Path, _size: int, _changed: int) -> str:
    """16 hex digits over the file's bytes, read again when it has changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _make(file: Path, folder: Path) -> None:
    """Writes beside the folder and renames, so that a folder that is there is whole."""
    if missing := missing_module("gguf"):
        raise ConfigError(f"policy.model={file}: {missing}")
    LOGGER.info(f"{file.name}: dequantised once into {folder}")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _dequantise(file, partial)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise ConfigError(f"policy.model={file}: cannot be made a model folder: {first_line(error)}") from error
    partial.rename(folder)


def _dequantise(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # bars would tear the run's own apart; one of them knows no switch
    with contextlib.redirect_stderr(io.StringIO()):
        quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = quantised.config.to_dict()
    config.pop("quantization_config", None)  # with it transformers refuses to save what is quantised no more
    with torch.device("meta"):
        model = type(quantised)(type(quantised.config)(**config))
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
