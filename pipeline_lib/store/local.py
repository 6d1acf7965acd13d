"""The content-addressed store: where every stage's result lies, and the truth about what is done.

One idea: an entry's folder is named by everything its content depends on, and its manifest is
written last, by atomic rename. So an entry is either whole or not there; "is it done?" is a look at
the disk, and running a stage twice writes the same bytes to the same place.

Layout: ``<root>/<stage>/<sha256(spec + upstream digests + stage version)>/``. ``observations.json``
(seconds, rates), ``.partial/`` (work under way) and ``.lock`` lie outside the digest. What a disk has damaged since
(`integrity`) is moved to ``<root>/damaged/``.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline_lib.store.files import canonical_json, read_json, sync, write_json
from pipeline_lib.store.integrity import (
    MANIFEST,
    OBSERVATIONS,
    UNREADABLE,
    Damage,
    file_fault,
    find_damage,
    listed_files,
    read_observations,
    seal,
    sha256_of,
)
from pipeline_lib.types import Ref

PARTIAL, LOCK, OWNER, DAMAGED, AGAIN = ".partial", ".lock", ".owner", "damaged", "again"
POLL_S = 0.5  # between two looks at a lock that another process holds
SCHEMA_VERSION = 1
LOGGER = logging.getLogger("coppice.progress")


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
        entry = self._at(_uri(stage, spec, inputs, version))
        entry.path.mkdir(parents=True, exist_ok=True)
        return entry

    def find(self, stage: str, spec: Mapping[str, Any], inputs: Sequence[Ref] = (), *, version: int) -> Entry | None:
        """An entry that is there and whole, else None; unlike `entry`, looking leaves no folder."""
        entry = self._at(_uri(stage, spec, inputs, version))
        return entry if entry.is_whole() else None

    def uri(self, stage: str, spec: Mapping[str, Any], inputs: Sequence[Ref] = (), *, version: int) -> str:
        """Stage and key of an entry, there or not; see `entry`."""
        return _uri(stage, spec, inputs, version)

    def ref(self, uri: str) -> Ref:
        """The reference of the complete entry of that URI.

        Raises:
            StoreError: it is not complete.
        """
        return self._at(uri).ref()

    def open(self, ref: Ref) -> Path:
        """The folder of a complete entry, every file of which has the content that was referred to.

        Raises:
            StoreError: it is not there, its manifest is another one, or a file was changed.
        """
        entry = self._at(ref.uri)
        if not entry.is_complete():
            raise StoreError(f"store: {ref.uri} is missing or incomplete below {self.root}; run its stage again")
        found = sha256_of(entry.path / MANIFEST)
        if found != ref.sha256:
            raise StoreError(
                f"store: {ref.uri} holds {found[:12]}, not {ref.sha256[:12]}; remove it and run its stage again"
            )
        for name, info in listed_files((entry.path / MANIFEST).read_bytes()).items():
            if fault := file_fault(entry.path / name, info):
                raise StoreError(f"store: {ref.uri}/{name} {fault}; remove {ref.uri} and run its stage again")
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
            files = listed_files((self.path / MANIFEST).read_bytes())
            return all(_size(self.path / name) == info["size"] for name, info in files.items())
        except UNREADABLE:
            return False

    def is_whole(self) -> bool:
        """Whether it is complete and nothing in it is damaged; reads its files, see `integrity` for what that costs."""
        return self.is_complete() and self.damage() is None

    def damage(self) -> Damage | None:
        """What is wrong with the entry since it was finished; None where nothing is, or where it never was."""
        return find_damage(self.path)

    def set_aside_damage(self) -> None:
        """Moves what is damaged out of the way, so that the stage makes it again, and says so in one line.

        The caller holds the lock. Work under way stays: a kill between manifest and clean-up may have left it.
        """
        damage = self.damage()
        if damage is None:
            return
        place = self._move_aside(damage)
        again = "is made again" if damage.is_of_result else "its result is kept, seconds and rates of it are lost"
        LOGGER.warning(
            f"store: {self.uri} is damaged: {damage.what}; it was moved to {place}, {again}; have the disk looked at, "
            "then remove that folder"
        )

    def _move_aside(self, damage: Damage) -> str:
        """Moves the entry's files, or its measurements alone; returns where to."""
        root = self.path.parents[self.uri.count("/")]
        places = (root / DAMAGED / f"{self.uri}.{number}" for number in count(1))
        place = next(folder for folder in places if not folder.exists())
        wanted = self._names() if damage.is_of_result else {OBSERVATIONS}
        for name in sorted(wanted, key=lambda name: name != MANIFEST):  # first of all, it is complete no longer
            place.mkdir(parents=True, exist_ok=True)
            (self.path / name).rename(place / name)
        return str(place)

    def fetch(self) -> None:
        """Brings a complete entry's files here; in this store they are."""

    @contextmanager
    def lock(
        self, timeout_s: float = 0.0, *, owner: str = "", on_wait: Callable[[str], None] = lambda holder: None
    ) -> Iterator[None]:
        """Keeps other processes from working on the entry: two that append to one file tear it.

        The operating system drops the lock of a killed process; committing needs none.

        Args:
            timeout_s: seconds to wait for the other process; below 0 without end.
            owner: what others are told about this process.
            on_wait: called once with what is known about the other process, before it is waited for.

        Raises:
            StoreError: another process still works on it.
        """
        lock = FileLock(self.path / LOCK, poll_interval=POLL_S)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = self._owner()
            if timeout_s:
                on_wait(holder)
            try:
                lock.acquire(timeout=timeout_s)
            except Timeout:
                raise StoreError(
                    f"store: {self.uri} is being made by {holder}; wait for it or stop it, then run again"
                ) from None
        try:
            (self.path / OWNER).write_text(owner, encoding="utf-8")
            yield
        finally:
            lock.release()

    def commit(self, num_rows: int, observations: Mapping[str, Any] | None = None) -> Ref:
        """Makes the entry whole: lists its files with their digests, then drops partial work.

        Partial work goes last, so that a process killed in here loses none of it.

        Raises:
            OSError: the disk is full; the entry stays incomplete.
        """
        files, folders = {}, {self.path.parent, self.path.parent.parent}
        for file in sorted(self._files()):
            sync(file)
            folders.add(file.parent)
            files[file.relative_to(self.path).as_posix()] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
        # Without this a power cut could leave a manifest that names files whose names are lost.
        for folder in sorted(folders):
            sync(folder)
        manifest = {"files": files, "num_rows": num_rows, "schema_version": SCHEMA_VERSION}
        write_json(self.path / OBSERVATIONS, seal(observations or {}, manifest))
        write_json(self.path / MANIFEST, manifest)
        shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
        return self.ref()

    def draft(self) -> Entry:
        """Where the same result can be made once more while this one stays; `replace_by` puts it in its place."""
        root = self.path.parents[self.uri.count("/")]
        draft = Entry(root / AGAIN / self.uri, self.uri)
        draft.path.mkdir(parents=True, exist_ok=True)
        return draft

    def replace_by(self, draft: Entry) -> bool:
        """Puts a complete draft in place of what is here; returns whether its files are others than those that were.

        What was here goes when all of the draft is in its place. The caller holds the lock.
        """
        assert draft.is_complete()
        manifest = (draft.path / MANIFEST).read_bytes()
        differs = not self.is_complete() or (self.path / MANIFEST).read_bytes() != manifest
        if differs:
            old = draft.path.with_name(f"{draft.path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            old.mkdir()
            for name in sorted(self._names(), key=lambda name: name != MANIFEST):  # first of all
                (self.path / name).rename(old / name)
            for name in sorted(draft._names(), key=lambda name: name == MANIFEST):  # last of all
                (draft.path / name).rename(self.path / name)
            shutil.rmtree(old)
        shutil.rmtree(draft.path)
        for folder in draft.path.parents[: self.uri.count("/") + 1]:
            with suppress(OSError):  # another draft lies in it
                folder.rmdir()
        return differs

    def _names(self) -> set[str]:
        """Files and folders of the result, without those of its making."""
        return {file.name for file in self.path.iterdir()} - {LOCK, OWNER, PARTIAL}

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
            sha256=sha256_of(self.path / MANIFEST),
            num_rows=manifest["num_rows"],
            schema_version=manifest["schema_version"],
        )

    def observations(self) -> dict[str, Any]:
        """What was measured while the entry was made; empty when nothing was.

        Raises:
            StoreError: it was changed since.
        """
        try:
            return read_observations(self.path)
        except UNREADABLE:
            raise StoreError(f"store: {self.uri}/{OBSERVATIONS} was changed; run its stage again") from None

    def _owner(self) -> str:
        file = self.path / OWNER
        return (file.read_text(encoding="utf-8") if file.is_file() else "") or "another process"

    def _files(self) -> Iterable[Path]:
        return (
            file
            for file in self.path.rglob("*")
            if file.is_file()
            and file.relative_to(self.path).parts[0] not in (MANIFEST, OBSERVATIONS, PARTIAL, LOCK, OWNER)
            and file.suffix != ".tmp"
        )


def _uri(stage: str, spec: Mapping[str, Any], inputs: Sequence[Ref], version: int) -> str:
    material = {"spec": spec, "inputs": [ref.sha256 for ref in inputs], "version": version}
    return f"{stage}/{hashlib.sha256(canonical_json(material).encode()).hexdigest()}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
