"""Where a model's name leads, and what identifies its weights.

A hub model that was fetched once is a folder like any other. The hub is asked for what is not in its cache here, and
for nothing else, so a run whose model is there needs no network.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline_lib.config import ConfigError, Settings
from pipeline_lib.config.one_line import first_line
from pipeline_lib.policy.gguf import folder_of_gguf, packaged_smollm2

TINY_BASE = Path(__file__).parent / "tiny_base"
WEIGHT_SUFFIXES = (".safetensors", ".json", ".jinja")
LAYOUT_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.py"]  # configuration and tokenizer; code is run if allowed
WEIGHT_FILES = ["*.safetensors"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")  # any of them
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """What a model makes its prompts with, as far as results depend on it.

    Args:
        digest: SHA-256 of the template's text; of all of them, where a model has several.
        reads_date: whether the prompt that it makes may name a date.
    """

    digest: str
    reads_date: bool

    @property
    def is_empty(self) -> bool:
        """Whether the model has none."""
        return self.digest == hashlib.sha256().hexdigest()


def model_path(name: str) -> Path | str:
    """The folder behind a model's name: ``tiny`` is the base that comes with Coppice, a hub name stays one.

    ``smollm2`` is what the package of that model carries. A GGUF file is dequantised, once, into the home's ``models``.

    Raises:
        ConfigError: a path without a model, or a file that cannot be read.
    """
    if name == "tiny":
        return TINY_BASE
    path = packaged_smollm2() if name == "smollm2" else Path(name).expanduser()
    if path.suffix == ".gguf":
        return folder_of_gguf(path, Settings().home / "models")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"policy.model={name}: the folder holds no config.json; name a model folder")
        return path
    if name.startswith((".", "/", "~")):
        raise ConfigError(f"policy.model={name}: no such folder; name a model folder or a hub model")
    return name


def model_folder(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder with a model's files; of a hub model its snapshot in the hub's cache, fetched when it is not there.

    Args:
        name: see `model_path`.
        revision: of a hub model; None is its main branch as it was when it was fetched.
        weights: False leaves them out: what only reads the layout or the tokenizer need not wait for them.

    Raises:
        ConfigError: a path without a model, or a hub model that is neither here nor to be had.
    """
    path = model_path(name)
    if isinstance(path, Path):
        return path
    from huggingface_hub import snapshot_download

    files = [*LAYOUT_FILES, *(WEIGHT_FILES if weights else ())]
    with suppress(OSError, ValueError):  # not there, or no name that the hub allows
        cached = Path(snapshot_download(name, revision=revision, allow_patterns=files, local_files_only=True))
        if _has_layout(cached) and (not weights or _has_weights(cached)):
            return cached
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except (OSError, ValueError) as error:
        reason = first_line(error).rstrip(".")
        raise ConfigError(
            f"policy.model={name}: neither a folder nor in the hub's cache here, and the hub does not give it "
            f"({reason}); fetch it where there is a network (`hf download {name}`), or name a model folder"
        ) from None
    if weights and not _has_weights(folder):
        raise ConfigError(f"policy.model={name}: its repository holds no weights as safetensors; choose one that does")
    return folder


def model_commit(name: str, revision: str | None = None) -> str | None:
    """The commit of a hub model that a revision means here; None for a folder, whose files say it themselves.

    It is that of the snapshot in the hub's cache, else the hub's own; asked once per process, so that a branch that
    moves on does not part a run in two.

    Args:
        name: see `model_path`.
        revision: a branch, a tag or a commit; None is the main branch.

    Raises:
        ConfigError: as in `model_folder`.
    """
    if isinstance(model_path(name), Path):
        return None
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import constants

    return _commit(name, revision, constants.HF_HUB_CACHE)


@lru_cache(maxsize=64)
def _commit(name: str, revision: str | None, cache: str) -> str | None:
    folder = model_folder(name, revision, weights=False)
    return folder.name if COMMIT.fullmatch(folder.name) else revision


def chat_template(folder: Path) -> ChatTemplate:
    """The template in a model's folder; empty, where there is none."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.rglob("chat_template*.jinja"))]
    for file in (folder / "tokenizer_config.json", folder / "chat_template.json"):
        if file.is_file():
            own = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
            texts += [own if isinstance(own, str) else json.dumps(own, sort_keys=True)] if own else []
    text = "\n".join(texts)
    return ChatTemplate(hashlib.sha256(text.encode()).hexdigest(), reads_date="strftime_now" in text)


def check_folder(folder: Path | str, kind: str, *, holds: str = "") -> None:
    """A folder must be there, and hold a file of that name; a text that looks like no path is left to the hub.

    Args:
        folder: a path, or a text that may be a hub name.
        kind: what it is the folder of, for the message.
        holds: a file's name; "" asks for none.

    Raises:
        ConfigError: the folder or the file is missing.
    """
    path = Path(folder)
    is_local = isinstance(folder, Path) or path.exists() or path.is_absolute() or folder.startswith(".")
    if is_local and not path.is_dir():
        raise ConfigError(f"the {kind} folder {path} does not exist")
    if is_local and holds and not (path / holds).is_file():
        raise ConfigError(f"the {kind} folder {path} has no {holds}")


def _has_layout(folder: Path) -> bool:
    """Whether configuration and tokenizer are there: another program may have fetched one file alone."""
    tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return tokenizer and all((folder / name).is_file() for name in ("config.json", "tokenizer_config.json"))


def _has_weights(folder: Path) -> bool:
    """Whether all of the weights are there: a fetch may have been interrupted."""
    index = folder / WEIGHTS_INDEX
    if not index.is_file():
        return (folder / WEIGHTS).is_file()
    parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all((folder / part).is_file() for part in parts)


def code_digest(folder: Path) -> str | None:
    """SHA-256 of the Python code that lies in a model's folder; None where none does."""
    files = sorted(folder.rglob("*.py"))
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}:{hashlib.sha256(file.read_bytes()).hexdigest()};".encode())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def fingerprint(folder: Path | str, revision: str | None = None) -> str:
    """16 hex digits over a folder's weights, configuration and tokenizer; of a hub name, over name and commit."""
    digest = hashlib.sha256()
    if isinstance(folder, str):
        digest.update(f"{folder}@{revision or 'main'}".encode())
        return digest.hexdigest()[:16]
    for file in sorted(folder.iterdir()):
        if file.suffix in WEIGHT_SUFFIXES:
            with file.open("rb") as stream:
                digest.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()[:16]
