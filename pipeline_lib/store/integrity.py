"""Whether an entry still is what its stage left: its files against the manifest, its measurements against their seal.

What this costs: a digest reads about 1 GB/s, and a file is read once per process for each state that it is in, so a
rerun reads its store once. The trees of 2,000 problems with 32 rollouts each are some 100 MB, a tenth of a second; the
full weights of 8 B parameters half a minute, which whoever samples them next reads as well.

``observations.json`` differs between runs that made the same files, so no reference can cover it. It is sealed
instead: it holds a digest of itself, and that of the manifest. Entries of version 0.1.0 have no seal; their files alone
can be checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline_lib.store.files import canonical_json, json_text, read_json

MANIFEST, OBSERVATIONS = "manifest.json", "observations.json"
SEAL = {"observed", "manifest", "sha256"}
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with an entry that was finished.

    Args:
        what: file and fault, as people read it.
        is_of_result: False where just the measurements are at fault: the result is whole.
    """

    what: str
    is_of_result: bool = True


def find_damage(folder: Path) -> Damage | None:
    """The first fault of a finished entry; None where there is none, and where the entry was never finished."""
    if not (folder / MANIFEST).exists():
        return None
    lost, sealed = None, None
    try:
        _, sealed = _read_sealed(folder)
    except UNREADABLE:
        lost = Damage(f"{OBSERVATIONS} was changed", is_of_result=False)
    if sealed not in (None, sha256_of(folder / MANIFEST)):
        return Damage(f"{MANIFEST} was changed")
    fault = _first_fault(folder)
    return lost if fault is None else Damage(fault)


def _first_fault(folder: Path) -> str | None:
    try:
        files = listed_files((folder / MANIFEST).read_bytes())
        faults = ((name, file_fault(folder / name, info)) for name, info in files.items())
        return next((f"{name} {fault}" for name, fault in faults if fault is not None), None)
    except UNREADABLE:
        return f"{MANIFEST} cannot be read"


def listed_files(manifest: bytes) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file by name, as a manifest's bytes say.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: these are no manifest.
    """
    read = json.loads(manifest)
    if sorted(read) != ["files", "num_rows", "schema_version"]:
        raise ValueError("no manifest")
    return {name: {"size": info["size"], "sha256": info["sha256"]} for name, info in read["files"].items()}


def file_fault(path: Path, info: Mapping[str, Any]) -> str | None:
    """What is wrong with a file, in a few words."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != info["size"]:
        return f"has {size} bytes instead of {info['size']}"
    return None if known_sha256(path) == info["sha256"] else "was changed"


def seal(observations: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Observations as they are written: with the digest of the manifest that will stand beside them, and their own."""
    digest = hashlib.sha256((json_text(manifest) + "\n").encode()).hexdigest()
    body = {"observed": json.loads(json_text(dict(observations))), "manifest": digest}
    return {**body, "sha256": _digest_of(body)}


def read_observations(folder: Path) -> dict[str, Any]:
    """What was measured while the entry was made; nothing where that is not there.

    Raises:
        ValueError, TypeError: it is damaged.
    """
    return dict(_read_sealed(folder)[0])


def sha256_of(path: Path) -> str:
    """A file's digest, read from the disk."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """`sha256_of`, computed once per process for each state of a file: weights are opened often and are large."""
    state = path.stat()
    return _sha256_of_state(path, state.st_size, state.st_mtime_ns, state.st_ino)


def _read_sealed(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Observations, and the digest of the manifest that was written with them; None from before there were seals."""
    path = folder / OBSERVATIONS
    if not path.is_file():
        return {}, None
    found: dict[str, Any] = read_json(path)
    if not found.keys() & SEAL:  # one changed byte hides one of the three at most
        return found, None
    if found.keys() != SEAL or _digest_of({name: found[name] for name in ("observed", "manifest")}) != found["sha256"]:
        raise ValueError(f"{OBSERVATIONS} was changed")
    return found["observed"], found["manifest"]


def _digest_of(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _sha256_of_state(path: Path, size: int, modified_ns: int, inode: int) -> str:
    return sha256_of(path)
