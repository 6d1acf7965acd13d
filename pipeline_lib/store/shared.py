"""A store that machines share through an object store: ``s3://``, ``gs://``, whatever fsspec knows.

One idea: an object store has neither renames nor locks, but the put of one object is atomic. Every machine works in
a local store as ever, and a finished entry is copied: first its files, into a folder named by the manifest's digest,
then the manifest, which alone makes it be there. So nobody sees half an entry, and two machines that make the same
one cannot mix their files: the first manifest stays, and whoever comes second takes over the first one's files.

Layout: ``<uri>/<stage>/<key>/manifest.json``; below ``<key>/<sha256 of the manifest>/`` the files.

1. **No lock** holds across machines. Two that make one entry at the same time do its work twice, no more.
2. **Damage** in the copy here is mended by fetching it again; what the object store itself has lost or changed is moved
   to ``<uri>/damaged/`` there, and the stage makes the entry again.
3. **Work under way** outlives a lost machine up to its last copy: the files in ``.partial`` (a search's finished
   problems) are copied every `sync_s` seconds; folders in it (a training's checkpoints) stay on their machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from pipeline_lib.distribution import missing_module
from pipeline_lib.store import MANIFEST, OBSERVATIONS, PARTIAL, Entry, Store, StoreError
from pipeline_lib.store.integrity import UNREADABLE, Damage, listed_files
from pipeline_lib.store.local import DAMAGED
from pipeline_lib.types import Ref

LOGGER = logging.getLogger("coppice.progress")
SYNC_S = 30.0


class SharedStore(Store):
    """Entries in an object store, and a local store to work in.

    Args:
        root: folder of the local store.
        uri: a folder of the object store, as fsspec names it; credentials come from the environment.
        sync_s: seconds between two copies of work under way.

    Raises:
        StoreError: fsspec lacks what the protocol needs.
    """

    def __init__(self, root: Path, uri: str, *, sync_s: float = SYNC_S) -> None:
        super().__init__(root)
        self._bucket, self._sync_s = _Bucket(uri), sync_s

    def open(self, ref: Ref) -> Path:
        self._at(ref.uri).damage()  # fetches it, and once more where the copy here is at fault
        return Store(self.root).open(ref)

    def folder(self, uri: str) -> Path:
        entry = self._at(uri)
        entry.fetch()
        return entry.path

    def _at(self, uri: str) -> SharedEntry:
        return SharedEntry(self.root / uri, uri, self._bucket, self._sync_s)


class SharedEntry(Entry):
    """One stage's result, here and in the object store, where it counts."""

    def __init__(self, path: Path, uri: str, bucket: _Bucket, sync_s: float) -> None:
        super().__init__(path, uri)
        self._bucket, self._sync_s = bucket, sync_s

    def is_complete(self) -> bool:
        """Whether the object store has it with all its files."""
        return self._shared_manifest() is not None

    def damage(self) -> Damage | None:
        """What is wrong with what the object store has, or here with what it does not have; fetches the entry."""
        damage = self._bucket.damage(self.uri)
        if damage is not None:
            return damage
        self.fetch()
        if super().damage() is None or self._shared_manifest() is None:
            return super().damage()
        (self.path / MANIFEST).unlink()  # the copy here may be at fault
        self.fetch()
        return super().damage()

    def _move_aside(self, damage: Damage) -> str:
        here = super()._move_aside(damage)
        return self._bucket.move_aside(self.uri, only=None if damage.is_of_result else OBSERVATIONS) or here

    def fetch(self) -> None:
        """Brings here what the object store has, unless it is here already."""
        manifest, local = self._shared_manifest(), self.path / MANIFEST
        if manifest is None or (super().is_complete() and local.read_bytes() == manifest):
            return
        local.unlink(missing_ok=True)
        there = self._bucket.sizes(_version(self.uri, manifest))
        for name in (*_files(manifest), *({OBSERVATIONS} & there.keys())):
            self._bucket.download(f"{_version(self.uri, manifest)}/{name}", self.path / name)
        _replace(local, manifest)

    def ref(self) -> Ref:
        self.fetch()
        return Entry(self.path, self.uri).ref()

    def observations(self) -> dict[str, Any]:
        self.fetch()
        return super().observations()

    def commit(self, num_rows: int, observations: Mapping[str, Any] | None = None) -> Ref:
        ref = super().commit(num_rows, observations)
        # An entry that is made again may have the same files and other observations: where it was tracked.
        self._bucket.upload(self.path / OBSERVATIONS, f"{self.uri}/{ref.sha256}/{OBSERVATIONS}")
        return ref

    @contextmanager
    def lock(
        self, timeout_s: float = 0.0, *, owner: str = "", on_wait: Callable[[str], None] = lambda holder: None
    ) -> Iterator[None]:
        """The lock of this machine; work under way is fetched first, and copied while it grows."""
        with super().lock(timeout_s, owner=owner, on_wait=on_wait):
            self._fetch_partial()
            stop = threading.Event()
            copying = threading.Thread(target=self._copy_until, args=(stop,), daemon=True)
            copying.start()
            try:
                yield
            finally:
                stop.set()
                copying.join()
            self._bucket.remove(f"{self.uri}/{PARTIAL}")

    def _shared_manifest(self) -> bytes | None:
        """The manifest that counts; an entry that is whole only here is copied first: a kill came between."""
        manifest = self._bucket.manifest(self.uri)
        is_here = manifest is None and super().is_complete() and super().damage() is None
        return self._push() if is_here else manifest

    def _push(self) -> bytes:
        """Copies the entry; the manifest that is there then, which may be another machine's."""
        manifest = (self.path / MANIFEST).read_bytes()
        measured = [OBSERVATIONS] if (self.path / OBSERVATIONS).is_file() else []
        for name in (*_files(manifest), *measured):
            self._bucket.upload(self.path / name, f"{_version(self.uri, manifest)}/{name}")
        return self._bucket.put_manifest(self.uri, manifest)

    def _copy_until(self, stop: threading.Event) -> None:
        copied: dict[str, int] = {}
        while not stop.is_set():
            stop.wait(self._sync_s)  # also once more at the end: a stage that failed keeps what it had
            try:
                self._push_partial(copied)
            except StoreError as error:  # a copy less is no reason to stop the work
                LOGGER.warning(str(error))

    def _push_partial(self, copied: dict[str, int]) -> None:
        folder = self.path / PARTIAL
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not file.is_file() or file.stat().st_size == copied.get(file.name):
                continue
            content = file.read_bytes()  # of a file that grows: its end may be torn, as after a kill
            self._bucket.put(f"{self.uri}/{PARTIAL}/{file.name}", content)
            copied[file.name] = len(content)

    def _fetch_partial(self) -> None:
        for name, size in self._bucket.sizes(f"{self.uri}/{PARTIAL}").items():
            local = self.path / PARTIAL / name
            if not local.is_file() or local.stat().st_size < size:
                self._bucket.download(f"{self.uri}/{PARTIAL}/{name}", local)


class _Bucket:
    """The object store's side, in names relative to its folder; every failure is a `StoreError`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with self._named():
            self._fs, self._base = fsspec.core.url_to_fs(uri, use_listings_cache=False)

    def manifest(self, uri: str) -> bytes | None:
        """The manifest of an entry that is there with all its files."""
        manifest = self._written_manifest(uri)
        return manifest if manifest is not None and self._fault(uri, manifest) is None else None

    def damage(self, uri: str) -> Damage | None:
        """What an entry whose manifest is there lacks, as names and sizes tell."""
        manifest = self._written_manifest(uri)
        fault = None if manifest is None else self._fault(uri, manifest)
        return None if fault is None else Damage(fault)

    def move_aside(self, uri: str, only: str | None = None) -> str:
        """Moves an entry's objects, or those called `only`, into a folder of their own; its address, "" if empty."""
        names = [
            name for name in self.sizes(uri) if not name.startswith(PARTIAL) and only in (None, name.split("/")[-1])
        ]
        if not names:
            return ""
        place = f"{DAMAGED}/{uri}.{uuid.uuid4().hex[:8]}"
        for name in sorted(names, key=lambda name: name != MANIFEST):  # first of all, it is there no longer
            with self._named():
                self._fs.cp_file(self._path(uri, name), self._path(place, name))
                self._fs.rm_file(self._path(uri, name))
        return f"{self._uri}/{place}"

    def _written_manifest(self, uri: str) -> bytes | None:
        try:
            with self._named(FileNotFoundError):
                manifest: bytes = self._fs.cat_file(self._path(uri, MANIFEST))
        except FileNotFoundError:
            return None
        return manifest

    def _fault(self, uri: str, manifest: bytes) -> str | None:
        """What is wrong with an entry, as names and sizes tell."""
        try:
            files = _files(manifest)
        except UNREADABLE:
            return f"{MANIFEST} cannot be read"
        sizes = self.sizes(_version(uri, manifest))
        if files and not sizes:  # the folder is called by the manifest's digest
            return f"{MANIFEST} was changed"
        wrong = (name for name, size in files.items() if sizes.get(name) != size)
        return next((f"{name} has another size, or is missing" for name in wrong), None)

    def put_manifest(self, uri: str, manifest: bytes) -> bytes:
        """Makes the entry be there, unless another machine's is; the manifest that is there."""
        try:
            with self._named(FileExistsError):
                self._fs.pipe_file(self._path(uri, MANIFEST), manifest, mode="create")
        except FileExistsError:
            other = self.manifest(uri)
            if other is not None:
                return other
            self.put(f"{uri}/{MANIFEST}", manifest)  # in place of one that names files that are gone
        return manifest

    def put(self, name: str, content: bytes) -> None:
        with self._named():
            self._fs.pipe_file(self._path(name), content)

    def upload(self, source: Path, name: str) -> None:
        with self._named():
            self._fs.put_file(str(source), self._path(name))

    def download(self, name: str, target: Path) -> None:
        """Puts the object's content at `target` in one move."""
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(target)
        with self._named():
            self._fs.get_file(self._path(name), str(draft))
        os.replace(draft, target)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes by name, of all objects below a folder."""
        with self._named():
            found = self._fs.find(self._path(folder), detail=True)
        start = len(self._path(folder)) + 1
        return {path[start:]: int(info["size"]) for path, info in found.items()}

    def remove(self, folder: str) -> None:
        for name in self.sizes(folder):
            with self._named():
                self._fs.rm_file(self._path(folder, name))

    def _path(self, *names: str) -> str:
        return "/".join((self._base, *names))

    @contextmanager
    def _named(self, *expected: type[Exception]) -> Iterator[None]:
        try:
            yield
        except expected:
            raise
        except ImportError as error:
            missing = missing_module("s3fs") if self._uri.startswith("s3:") else None
            raise StoreError(f"store: {self._uri}: {missing or ' '.join(str(error).split())}") from error
        except Exception as error:  # every protocol has its own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise StoreError(f"store: {self._uri}: {reason}; see COPPICE_STORE and its credentials") from error


def _version(uri: str, manifest: bytes) -> str:
    return f"{uri}/{hashlib.sha256(manifest).hexdigest()}"


def _files(manifest: bytes) -> dict[str, int]:
    """Sizes by name."""
    return {name: info["size"] for name, info in listed_files(manifest).items()}


def _draft(target: Path) -> Path:
    return target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")


def _replace(target: Path, content: bytes) -> None:
    draft = _draft(target)
    draft.write_bytes(content)
    os.replace(draft, target)
