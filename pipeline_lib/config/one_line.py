"""What another program says about a failure, cut to the one line that an error message has room for."""

from __future__ import annotations

from pydantic import ValidationError


def first_line(error: Exception) -> str:
    """The first line of an error, or its class where it has no words.

    Of pydantic's errors, which begin with a count, the first complaint.
    """
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"])
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def one_line(text: str, *, max_chars: int) -> str:
    """A text with each run of white space as one space, cut to `max_chars`."""
    return " ".join(text.split())[:max_chars]
