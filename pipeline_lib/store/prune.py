"""What lies in a store's folder, and how an entry leaves it: in one move as far as a reader can see."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline_lib.store.integrity import MANIFEST, Damage, find_damage
from pipeline_lib.store.local import DAMAGED, LOCK, PARTIAL

STAGE_AND_KEY = 2  # folders deep lie entries


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry's folder as it lies there, finished or not.

    Args:
        uri: stage and key.
        path: the folder.
        changed: when a file of it was written last, seconds since 1970.
    """

    uri: str
    path: Path
    changed: float

    @property
    def partial(self) -> Path:
        """Where work under way lies."""
        return self.path / PARTIAL

    @property
    def is_finished(self) -> bool:
        """Whether a stage has finished it, whatever became of its files since."""
        return (self.path / MANIFEST).exists()


def stored_entries(root: Path) -> Iterator[StoredEntry]:
    """Every entry below the store's folder, in the order of their names; what was damaged and moved aside is none."""
    for path in sorted(root.glob("/".join("*" * STAGE_AND_KEY))):
        if path.is_dir() and path.parent.name != DAMAGED:
            written = [file.stat().st_mtime for file in path.rglob("*") if file.name != LOCK]
            yield StoredEntry(f"{path.parent.name}/{path.name}", path, max(written, default=path.stat().st_mtime))


def verify(root: Path) -> Iterator[tuple[str, Damage | None]]:
    """Every finished entry's URI, with what is wrong with it; reads all files, about 1 GB/s."""
    for entry in stored_entries(root):
        if entry.is_finished:
            yield entry.uri, find_damage(entry.path)


def remove_entry(path: Path) -> bool:
    """Whether the entry is gone; one that a process works on stays.

    Its manifest goes first: killed in between, what is left is an entry that was never finished, and its stage makes it
    again.
    """
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except FileNotFoundError:  # gone already
        return True
    try:
        (path / MANIFEST).unlink(missing_ok=True)
        for part in [part for part in path.iterdir() if part.name != LOCK]:
            shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink(missing_ok=True)
    finally:
        lock.release()
    shutil.rmtree(path, ignore_errors=True)
    return True


def files_below(paths: Iterable[Path]) -> list[Path]:
    """All files of some files and folders."""
    return [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]


def freed_bytes(files: Iterable[Path]) -> int:
    """What the disk has more once these files are gone: one with further names elsewhere frees nothing."""
    names: dict[tuple[int, int, int, int], set[Path]] = defaultdict(set)
    for file in files:
        state = file.stat()
        names[state.st_dev, state.st_ino, state.st_nlink, state.st_size].add(file)
    return sum(size for (_, _, links, size), found in names.items() if len(found) >= links)


def used_bytes(files: Iterable[Path]) -> int:
    """What these files take on the disk; one with several names counts once."""
    states = {(state.st_dev, state.st_ino): state.st_size for state in (file.stat() for file in files)}
    return sum(states.values())
