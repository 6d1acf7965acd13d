"""A tracking server that does not answer, told from one that refuses: only the former is worth another attempt.

MLflow raises its own errors, requests' or the database's, depending on the call. Each client is wrapped once, in
`ErrorTranslatingClient`, so that whoever uses it meets one class with one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from pipeline_lib.store.disk import DiskFullError, error_chain, is_disk_full
from pipeline_lib.store.patience import is_outage

MAX_RACES = 16  # runs of a sweep that come to the same data set at once


class TrackingError(ValueError):
    """The tracking database cannot serve this request; the message is one line and says what to do."""


class TrackingOutage(TrackingError):
    """The tracking server does not answer: the same request may succeed later."""


class ErrorTranslatingClient:
    """An MLflow client whose failures say in one line which server, what is wrong, and what to do.

    Args:
        client: the MLflow client behind it; each of its methods is there.
        uri: of its server or database; a password in it is not repeated.
    """

    def __init__(self, client: Any, uri: str) -> None:
        self._client, self._uri = client, without_password(uri)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        @wraps(method)
        def named(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                if is_disk_full(error):
                    raise DiskFullError(
                        f"disk full: {self._uri} has no room; make room there, then retry: what is finished is kept"
                    ) from error
                if is_outage(error):
                    raise TrackingOutage(
                        f"tracking: {self._uri} does not answer ({_reason(error)}); start MLflow's server again, "
                        "then retry: what is finished is kept"
                    ) from error
                raise

        return named


def once_nobody_else_writes(write: Callable[[], None]) -> None:
    """Writes rows that MLflow looks for before it adds them, again where another run added one in between.

    Runs of a sweep share data sets. Whoever comes second breaks the database's rule that a row is there once, and finds
    the row at the next attempt.

    Args:
        write: may be called again after it failed.
    """
    for _ in range(MAX_RACES):
        try:
            return write()
        except Exception as error:
            if not _is_there_already(error):
                raise
    write()


def _is_there_already(error: BaseException) -> bool:
    """Whether SQLite, PostgreSQL, or a server before one of them, says that a row stands there."""
    said = " ".join(str(each) for each in error_chain(error))
    return "UNIQUE constraint failed" in said or "duplicate key value" in said


def without_password(uri: str) -> str:
    """The address as it may be shown: whoever it names before an ``@`` is left out."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _reason(error: BaseException) -> str:
    """What the innermost exception says, in a few words."""
    first = list(error_chain(error))[-1]
    return " ".join(str(first).split())[:100] or type(first).__name__
