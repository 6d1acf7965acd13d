"""Which files hold a split, given the one path that the user names.

A name that says ``train`` means train only. Asked for another split, the file or folder of that name beside it is
taken, or the run stops: training questions never stand in for a test.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline_lib.problems.row_files import READERS
from pipeline_lib.problems.rows import ProblemsError

VALIDATION_NAMES = ("validation", "valid", "dev")
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|test|validation|valid|dev)(?![a-z])", re.IGNORECASE)


def find_files(path: Path, split: str) -> list[Path]:
    """The files of `split`, in a stable order.

    A file whose name names no split serves whichever split is asked for. A folder holds
    ``<split>.parquet``, ``<split>-00000-of-00001.parquet`` and the like, or a folder ``<split>``
    with anything below it. What is called ``valid`` or ``dev`` is a validation split too.

    Raises:
        ProblemsError: nothing there, an unknown kind of file, or only another split.
    """
    if not path.exists():
        raise ProblemsError(f"{path} does not exist; name a file or a folder with {split} files")
    found = find_validation(path) if split == "validation" and _split_named(path) != split else []
    path = path if found else _of_split(path, split)
    if path.is_file() and not found:
        if path.suffix.lower() not in READERS:
            raise ProblemsError(f"{path}: cannot read {path.suffix or 'this kind of'} files, only {_kinds()}")
        return [path]
    found = found or _files_in(path, split)
    if not found:
        raise ProblemsError(f"{path}: no {split} files; expected {split}.parquet, {split}.jsonl … or a folder {split}/")
    kinds = sorted({file.suffix.lower() for file in found})
    if len(kinds) > 1:
        raise ProblemsError(f"{path}: {split} is there as {' and as '.join(kinds)}; name one file in problems.path")
    return found


def find_validation(path: Path) -> list[Path]:
    """The files of a validation split in a folder, or beside a train split; none where it has to be cut from train.

    Raises:
        ProblemsError: there are several.
    """
    found = [files for name in VALIDATION_NAMES if (files := _files_called(path, name))]
    if len(found) > 1:
        raise ProblemsError(
            f"{found[0][0]} and {found[1][0]} may both be the validation set; name one in problems.validation_path"
        )
    return found[0] if found else []


def _files_called(path: Path, name: str) -> list[Path]:
    """Files called `name` in a folder, or beside what is called after another split."""
    if _split_named(path) is not None:
        path = path.with_name(_SPLIT_IN_NAME.sub(name, path.name))
    elif path.is_file():
        return []
    return _readable([path]) if path.is_file() else _files_in(path, name)


def _files_in(path: Path, name: str) -> list[Path]:
    """The files of a folder whose names begin with `name`, else those below the folder `name`, in it or itself."""
    folder = path if _split_named(path) is not None else path / name
    return _readable(sorted(path.glob(f"{name}[.-]*"))) or _readable(sorted(folder.rglob("*"), key=_natural))


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
    """The split that a name says; of a folder only where it says nothing else: `test-data` may hold any split."""
    names = [path.name] if path.is_dir() else _SPLIT_IN_NAME.findall(path.name)
    found = {name.lower() for name in names}
    found = {"validation" if name in VALIDATION_NAMES else name for name in found}
    said = found.pop() if len(found) == 1 else None
    return said if said in ("train", "test", "validation") else None


def _readable(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.is_file() and path.suffix.lower() in READERS]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key with numbers as numbers: ``9.json`` before ``10.json``."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _kinds() -> str:
    return ", ".join(READERS)
