"""Files of the store as MLflow's artifacts without a second copy: hard links, where both lie on one file system.

A link is another name of the same file: both ends are whole by themselves, so either may be removed first, MLflow's
pages and downloads read it like any file, and the disk holds it once. A reference in its place would leave a champion
that cannot be loaded once the store is pruned. Artifacts that lie elsewhere, behind a server or in an object store, get
their copy: other machines read them there.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

SMALL_BYTES = 65536


def link_into(artifact_uri: str, source: Path, name: str) -> bool:
    """Whether a file, or all files of a folder, are artifacts now, under names below `name`.

    Where it is False, whoever copies instead finds no old name: copying over a link would write into the store.

    Args:
        artifact_uri: the artifacts' folder, as MLflow names it.
        source: a finished file or folder, which nobody will write to.
        name: folder within the artifacts; "" for the artifacts' own.
    """
    root = local_folder(artifact_uri)
    if root is None:
        return False
    pairs = [(file, root / name / place) for file, place in _files(source)]
    try:
        for file, target in pairs:
            _link(file, target)
    except OSError:  # another file system, or one without links
        for _, target in pairs:
            target.unlink(missing_ok=True)
        return False
    return True


def local_folder(uri: str) -> Path | None:
    """The folder behind an address of artifacts; None where a server or an object store has them."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(uri)


def _files(source: Path) -> Iterator[tuple[Path, Path]]:
    """Each file with its place below the artifacts' folder."""
    if source.is_file():
        yield source, Path(source.name)
    else:
        yield from ((file, file.relative_to(source)) for file in sorted(source.rglob("*")) if file.is_file())


def _link(file: Path, target: Path) -> None:
    """In one move, so that a reader of an older file of that name is not disturbed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(file):
        return
    draft = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        os.link(file.resolve(), draft)
    except OSError:
        if file.stat().st_size > SMALL_BYTES:
            raise
        shutil.copyfile(file, draft)  # an adapter's configuration with its base named is no file of the store
    os.replace(draft, target)
