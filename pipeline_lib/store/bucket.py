"""An object store's side of a shared store: its objects, by names relative to its folder.

An object store that does not answer is asked again for as long as its patience lasts: each call may be made twice, as
an answer can be lost when all was done. Whatever it refuses becomes a `StoreError`.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from pipeline_lib.distribution import missing_module
from pipeline_lib.store.integrity import MANIFEST, UNREADABLE, Damage, listed_files
from pipeline_lib.store.local import DAMAGED, PARTIAL, StoreError
from pipeline_lib.store.patience import patiently


class Bucket:
    """A folder of an object store.

    Args:
        uri: the folder, as fsspec names it; credentials come from the environment.
        patience_s: seconds that a call waits for an object store that does not answer.

    Raises:
        StoreError: fsspec lacks what the protocol needs.
    """

    def __init__(self, uri: str, *, patience_s: float) -> None:
        self._uri, self._patience_s = uri, patience_s
        self._fs, self._base = self._call(lambda: fsspec.core.url_to_fs(uri, use_listings_cache=False))

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
            source, target = self._path(uri, name), self._path(place, name)
            self._call(partial(self._fs.cp_file, source, target))
            self._remove(source)
        return f"{self._uri}/{place}"

    def put_manifest(self, uri: str, manifest: bytes) -> bytes:
        """Makes the entry be there, unless another machine's is; the manifest that is there."""
        path = self._path(uri, MANIFEST)
        try:
            self._call(lambda: self._fs.pipe_file(path, manifest, mode="create"), FileExistsError)
        except FileExistsError:
            other = self.manifest(uri)
            if other is not None:
                return other
            self.put(f"{uri}/{MANIFEST}", manifest)  # in place of one that names files that are gone
        return manifest

    def put(self, name: str, content: bytes, *, patient: bool = True) -> None:
        """Writes an object; without patience, one that does not answer is an error at once."""
        self._call(lambda: self._fs.pipe_file(self._path(name), content), patient=patient)

    def upload(self, source: Path, name: str) -> None:
        """Copies a file into an object."""
        self._call(lambda: self._fs.put_file(str(source), self._path(name)))

    def download(self, name: str, target: Path) -> None:
        """Puts the object's content at `target` in one move."""
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = draft_of(target)
        self._call(lambda: self._fs.get_file(self._path(name), str(draft)))
        os.replace(draft, target)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes by name, of all objects below a folder."""
        found = self._call(lambda: self._fs.find(self._path(folder), detail=True))
        start = len(self._path(folder)) + 1
        return {path[start:]: int(info["size"]) for path, info in found.items()}

    def remove(self, folder: str) -> None:
        """Removes all objects below a folder, a manifest first: what is half removed is not there."""
        for name in sorted(self.sizes(folder), key=lambda name: name != MANIFEST):
            self._remove(self._path(folder, name))

    def _remove(self, path: str) -> None:
        try:
            self._call(lambda: self._fs.rm_file(path), FileNotFoundError)
        except FileNotFoundError:  # removed by the call whose answer was lost
            return

    def _written_manifest(self, uri: str) -> bytes | None:
        try:
            manifest: bytes = self._call(lambda: self._fs.cat_file(self._path(uri, MANIFEST)), FileNotFoundError)
        except FileNotFoundError:
            return None
        return manifest

    def _fault(self, uri: str, manifest: bytes) -> str | None:
        """What is wrong with an entry, as names and sizes tell."""
        try:
            files = listed_sizes(manifest)
        except UNREADABLE:
            return f"{MANIFEST} cannot be read"
        sizes = self.sizes(version_folder(uri, manifest))
        if files and not sizes:  # the folder is called by the manifest's digest
            return f"{MANIFEST} was changed"
        wrong = (name for name, size in files.items() if sizes.get(name) != size)
        return next((f"{name} has another size, or is missing" for name in wrong), None)

    def _path(self, *names: str) -> str:
        return "/".join((self._base, *names))

    def _call(self, act: Callable[[], Any], *expected: type[Exception], patient: bool = True) -> Any:
        """What `act` returns; of its errors, those `expected` come as they are."""
        try:
            return patiently(act, patience_s=self._patience_s if patient else 0.0, what=f"store: {self._uri}")
        except expected:
            raise
        except ImportError as error:
            missing = missing_module("s3fs") if self._uri.startswith("s3:") else None
            raise StoreError(f"store: {self._uri}: {missing or ' '.join(str(error).split())}") from error
        except Exception as error:  # every protocol has its own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise StoreError(f"store: {self._uri}: {reason}; see COPPICE_STORE and its credentials") from error


def version_folder(uri: str, manifest: bytes) -> str:
    """Where the files lie that a manifest names."""
    return f"{uri}/{hashlib.sha256(manifest).hexdigest()}"


def listed_sizes(manifest: bytes) -> dict[str, int]:
    """Sizes by name, as a manifest says; raises one of `UNREADABLE`."""
    return {name: info["size"] for name, info in listed_files(manifest).items()}


def draft_of(target: Path) -> Path:
    """A place beside `target` that nobody else writes to."""
    return target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")


def replace(target: Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one."""
    draft = draft_of(target)
    draft.write_bytes(content)
    os.replace(draft, target)
