"""What passes by itself, a server or an object store that is away, and the patience with it.

Each library reports it in its own way; what they have in common is a class, or an HTTP status, somewhere in the chain
of exceptions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline_lib.store.disk import error_chain

R = TypeVar("R")
LOGGER = logging.getLogger("coppice.progress")
LONGEST_DELAY_S = 300.0
PASSING_STATUS = (408, 425, 429)
PASSING_TEXTS = ("locked", "onnection", "server closed")  # sqlite's, PostgreSQL's
HTTP_LIBRARIES = ("requests", "urllib3", "aiohttp", "httpx", "httpcore")
NO_ANSWER = {"ConnectionError", "HTTPClientError"}  # botocore's own; its other errors are about keys and names


def is_outage(error: BaseException) -> bool:
    """Whether a server that is away, overloaded or locked is behind the error: what passes without any change here."""
    for cause in error_chain(error):
        status = _http_status(cause)
        if status is not None:
            return status in PASSING_STATUS or status >= 500
        if isinstance(cause, (ConnectionError, TimeoutError)):
            return True
        if type(cause).__module__.partition(".")[0] in HTTP_LIBRARIES:
            return True
        if NO_ANSWER & {kind.__name__ for kind in type(cause).__mro__}:
            return True
        if type(cause).__name__ == "OperationalError" and any(text in str(cause) for text in PASSING_TEXTS):
            return True
    return False


def _http_status(cause: BaseException) -> int | None:
    """The status that a server answered with; None where the exception is not about an answer."""
    response: Any = getattr(cause, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}  # botocore's
    status: int | None = metadata.get("HTTPStatusCode", getattr(response, "status_code", None))
    return status


def patiently(act: Callable[[], R], *, patience_s: float, what: str) -> R:
    """What `act` returns; it is called again after an error that passes by itself.

    Args:
        act: may be called twice: an answer can be lost when all was done.
        patience_s: seconds after which the error is raised all the same; 0 calls it once.
        what: who does not answer, for the one line that says what is waited for.

    Raises:
        Exception: the last one of `act`.
    """
    for attempt, delay in enumerate(doubling_delays(patience_s)):
        try:
            return act()
        except Exception as error:
            if not is_outage(error):
                raise
            if not attempt:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                LOGGER.warning(f"{what} does not answer ({reason}); it is asked again for up to {patience_s:.0f} s")
        time.sleep(delay)
    return act()


def doubling_delays(total_s: float) -> list[float]:
    """Seconds between attempts: 1, 2, 4, ..., at most 300 each and `total_s` together.

    Example: ``doubling_delays(10) == [1, 2, 4, 3]``
    """
    delays: list[float] = []
    while (left := total_s - sum(delays)) > 0:
        delays.append(min(2.0 ** len(delays), LONGEST_DELAY_S, left))
    return delays
