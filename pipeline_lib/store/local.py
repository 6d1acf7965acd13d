"""The content-addressed store: where every stage's result lies, and the truth about what is done.

One idea: an entry's folder is named by everything its content depends on, and its manifest is
written last, by atomic rename. So an entry is either whole or not there; "is it done?" is a look at
the disk, and running a stage twice writes the same bytes to the same place.

Layout: ``<root>/<stage>/<sha256(spec + upstream digests + stage version)>/``. ``observations.json``
(seconds, rates), ``.partial/`` (work under way) and ``.lock`` lie outside the digest.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline_lib.store.files import canonical_json, read_json, sync, write_json
from pipeline_lib.types import Ref

MANIFEST, OBSERVATIONS, PARTIAL, LOCK = "manifest.json", "observations.json", ".partial", ".lock"
SCHEMA_VERSION = 1


class StoreError(ValueError):
    """An entry that is missing or damaged; the message is one line and says what to do."""


class Store:
    """Entries below one folder.

    Args:
        root: the folder; created when needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def entry(self, stage: str, spec: Mapping[str, Any], inputs: Sequence[Ref] = (), *, version: int) -> Entry:
        """Where the result of a stage lies, or will lie.

        Args:
            stage: the stage's name; becomes a folder's.
            spec: all that the result depends on besides `inputs`; JSON.
            inputs: references of upstream entries, in order.
            version: number of the stage's code, raised whenever the code makes another result of the same inputs.
        """
        material = {"spec": spec, "inputs": [ref.sha256 for ref in inputs], "version": version}
        key = hashlib.sha256(canonical_json(material).encode()).hexdigest()
        entry = self._at(f"{stage}/{key}")
        entry.path.mkdir(parents=True, exist_ok=True)
        return entry

    def open(self, ref: Ref) -> Path:
        """The folder of a complete entry, every file of which has the content that was referred to.

        Raises:
            StoreError: it is not there, its manifest is another one, or a file was changed.
        """
        entry = self._at(ref.uri)
        if not entry.is_complete():
            raise StoreError(f"store: {ref.uri} is missing or incomplete below {self.root}; run its stage again")
        found = _sha256(entry.path / MANIFEST)
        if found != ref.sha256:
            raise StoreError(
                f"store: {ref.uri} holds {found[:12]}, not {ref.sha256[:12]}; remove it and run its stage again"
            )
        for name, info in read_json(entry.path / MANIFEST)["files"].items():
            if _known_sha256(entry.path / name) != info["sha256"]:
                raise StoreError(f"store: {ref.uri}/{name} was changed; remove {ref.uri} and run its stage again")
        return entry.path

    def is_complete(self, ref: Ref) -> bool:
        """Whether the entry is there with all its files."""
        return self._at(ref.uri).is_complete()

    def observations(self, ref: Ref) -> dict[str, Any]:
        """What was measured while the entry was made: seconds, rates."""
        return self._at(ref.uri).observations()

    def folder(self, uri: str) -> Path:
        """Where an entry of that URI lies; unlike `open`, it does not check whether the entry is whole."""
        return self._at(uri).path

    def _at(self, uri: str) -> Entry:
        return Entry(self.root / uri, uri)


class Entry:
    """One stage's result.

    Args:
        path: the entry's folder.
        uri: the folder's name relative to the store's root.
    """

    def __init__(self, path: Path, uri: str) -> None:
        self.path, self.uri = path, uri

    def is_complete(self) -> bool:
        """Whether the manifest is there, and every file that it lists, with its size."""
        try:
            files = read_json(self.path / MANIFEST)["files"]
            return all(_size(self.path / name) == info["size"] for name, info in files.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def fetch(self) -> None:
        """Brings a complete entry's files here; in this store they are."""

    @contextmanager
    def lock(self, timeout_s: float = 0.0) -> Iterator[None]:
        """Keeps other processes from working on the entry: two that append to one file tear it.

        The operating system drops the lock of a killed process; committing needs none.

        Args:
            timeout_s: seconds to wait for the other process; below 0 without end.

        Raises:
            StoreError: another process still works on it.
        """
        lock = FileLock(self.path / LOCK, timeout=timeout_s)
        try:
            lock.acquire()
        except Timeout:
            raise StoreError(
                f"store: {self.uri} is being made by another process; wait for it or stop it, then run again"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def commit(self, num_rows: int, observations: Mapping[str, Any] | None = None) -> Ref:
        """Makes the entry whole: lists its files with their digests, then drops partial work.

        Partial work goes last, so that a process killed in here loses none of it.

        Raises:
            OSError: the disk is full; the entry stays incomplete.
        """
        write_json(self.path / OBSERVATIONS, dict(observations or {}))
        files, folders = {}, {self.path.parent, self.path.parent.parent}
        for file in sorted(self._files()):
            sync(file)
            folders.add(file.parent)
            files[file.relative_to(self.path).as_posix()] = {"size": file.stat().st_size, "sha256": _sha256(file)}
        # Without this a power cut could leave a manifest that names files whose names are lost.
        for folder in sorted(folders):
            sync(folder)
        write_json(self.path / MANIFEST, {"files": files, "num_rows": num_rows, "schema_version": SCHEMA_VERSION})
        shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
        return self.ref()

    def ref(self) -> Ref:
        """The reference of a complete entry.

        Raises:
            StoreError: it is not complete.
        """
        if not self.is_complete():
            raise StoreError(f"store: {self.uri} is not complete; run its stage again")
        manifest = read_json(self.path / MANIFEST)
        return Ref(
            uri=self.uri,
            sha256=_sha256(self.path / MANIFEST),
            num_rows=manifest["num_rows"],
            schema_version=manifest["schema_version"],
        )

    def observations(self) -> dict[str, Any]:
        """What was measured while the entry was made; empty when nothing was."""
        path = self.path / OBSERVATIONS
        return dict(read_json(path)) if path.is_file() else {}

    def _files(self) -> Iterable[Path]:
        return (
            file
            for file in self.path.rglob("*")
            if file.is_file()
            and file.relative_to(self.path).parts[0] not in (MANIFEST, OBSERVATIONS, PARTIAL, LOCK)
            and file.suffix != ".tmp"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _known_sha256(path: Path) -> str:
    """`_sha256`, computed once per process for each state of a file: weights are opened often and are large."""
    state = path.stat()
    return _sha256_of_state(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=4096)
def _sha256_of_state(path: Path, size: int, modified_ns: int, inode: int) -> str:
    return _sha256(path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
