"""Tells a full disk in one line, whichever library ran into it.

Each library reports it in its own way, as an OSError, a Rust error, a database's. What they have in common is the
error code in one of the exceptions of the chain, or the system's own sentence in its text.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL_CODES = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL_SENTENCES = ("No space left on device", "Disk quota exceeded", "database or disk is full", "StorageFull")


class DiskFullError(RuntimeError):
    """No room for a result; the message is one line and says what, where, and what to do."""


@contextmanager
def explain_disk_full(path: Path, what: str) -> Iterator[None]:
    """Turns any error of a full disk into a `DiskFullError`; others pass.

    Args:
        path: folder below which something was written; it need not exist.
        what: what was being made, for the message.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        free = f"{shutil.disk_usage(_existing(path)).free / 2**20:.1f} MiB free"
        raise DiskFullError(
            f"disk full: no room for {what} below {path} ({free}); make room, then retry: what is finished is kept"
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk, or a used-up quota, is somewhere behind the error."""
    return any(
        (isinstance(cause, OSError) and cause.errno in DISK_FULL_CODES)
        or any(sentence in str(cause) for sentence in DISK_FULL_SENTENCES)
        for cause in error_chain(error)
    )


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what led to it, the innermost last."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
