"""JSON and Parquet on disk, whole or not there: a reader sees the old file or the new one, never half of it."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline_lib.types import JsonDict


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def json_text(value: Any) -> str:
    """JSON as `write_json` writes it, but for the line feed at its end."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False, default=_plain)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    text = json_text(value)
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk it is in the way of the next attempt
        raise
    sync(path.parent)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a table so that a reader sees the whole file or none; `Entry.commit` waits until it is on the disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # as in `write_json`
        raise


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(value: Any) -> JsonDict:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
