"""Which files hold a split, given the one path that the user names.

A name that says ``train`` means train only. Asked for another split, the file or folder of that name beside it is
taken, or the run stops: training questions never stand in for a test.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline_lib.problems.rows import READERS, ProblemsError

_SPLITS = ("train", "test", "validation")
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|test|validation|valid|dev)(?![a-z])", re.IGNORECASE)


def find_files(path: Path, split: str) -> list[Path]:
    """The files of `split`, in a stable order.

    A file whose name names no split serves whichever split is asked for. A folder holds
    ``<split>.parquet``, ``<split>-00000-of-00001.parquet`` and the like, or a folder ``<split>``
    with anything below it.

    Raises:
        ProblemsError: nothing there, an unknown kind of file, or only another split.
    """
    if not path.exists():
        raise ProblemsError(f"problems.path: {path} does not exist; name a file or a folder with {split} files")
    path = _of_split(path, split)
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise ProblemsError(f"{path}: cannot read {path.suffix or 'this kind of'} files, only {_kinds()}")
        return [path]
    folder = path if _split_named(path) == split else path / split
    found = _readable(sorted(path.glob(f"{split}[.-]*"))) or _readable(sorted(folder.rglob("*"), key=_natural))
    if not found:
        raise ProblemsError(f"{path}: no {split} files; expected {split}.parquet, {split}.jsonl … or a folder {split}/")
    kinds = sorted({file.suffix.lower() for file in found})
    if len(kinds) > 1:
        raise ProblemsError(f"{path}: {split} is there as {' and as '.join(kinds)}; name one file in problems.path")
    return found


def _of_split(path: Path, split: str) -> Path:
    """`path`, or what stands beside it under the name of `split`."""
    named = _split_named(path)
    if named in (None, split):
        return path
    sibling = path.with_name(_SPLIT_IN_NAME.sub(split, path.name))
    if not sibling.exists():
        raise ProblemsError(f"{path} holds {named}, and {split} is asked for; put {sibling.name} beside it")
    return sibling


def _split_named(path: Path) -> str | None:
    named = {"valid": "validation", "dev": "validation"}
    if path.is_dir():
        return path.name.lower() if path.name.lower() in _SPLITS else None  # `test-data` may hold any split
    found = {named.get(name.lower(), name.lower()) for name in _SPLIT_IN_NAME.findall(path.name)}
    return found.pop() if len(found) == 1 else None


def _readable(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.is_file() and path.suffix.lower() in READERS]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key with numbers as numbers: ``9.json`` before ``10.json``."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _kinds() -> str:
    return ", ".join(READERS)
