r"""Rows with the place that a message can name, and what of a row is text.

One idea: a broken row is a value among the others, a `BadRow` that says file, row, field and what to
do; whoever reads decides whether to go on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pipeline_lib.config import ConfigError

# What JSON and Python make of LaTeX with single backslashes: `\frac` becomes a form feed and `rac`, `\vec` a vertical
# tab and `ec`. Tabs and line ends stand before letters in good texts too: there the rest of a command must follow.
LOST_BACKSLASH = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f][A-Za-z]+"
    r"|\t(?:heta|imes|ext(?:bf|it|rm)?|frac|binom|riangle|ilde|herefore|au|op)(?![A-Za-z])"
    r"|\tan(?=\s?(?:[\\({^\d]|[A-Za-z](?![A-Za-z])))"  # of an angle; "an" is a word, too
    r"|\r(?:ight|ho|angle|ceil|floor|vert|brace|m)(?![A-Za-z])"
    r"|\n(?:eq|eg|abla|otin|leq|geq|parallel|ewline)(?![A-Za-z])"
)
_LETTERS = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}


class ProblemsError(ConfigError):
    """A dataset that cannot be used; the message is one line and says what to do."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that holds no usable problem.

    Args:
        file: the file that it stands in.
        row: number from 1; the line in a JSONL file, the record after the header in a CSV file.
        field: which field is at fault; "" for the whole row.
        fault: what is wrong and what to do.
    """

    file: str
    row: int
    field: str
    fault: str

    @property
    def reason(self) -> str:
        """The whole message, one line."""
        field = f", field {self.field!r}" if self.field else ""
        return f"{self.file}, row {self.row}{field}: {self.fault}"


@dataclass(frozen=True, slots=True)
class Row:
    """One record, by field name, and the file and row where it stands, as in `BadRow`."""

    file: str
    row: int
    values: Mapping[str, Any]

    def bad(self, field: str, fault: str) -> BadRow:
        """The same row as a bad one."""
        return BadRow(self.file, self.row, field, fault)

    def get(self, field: str) -> Any:
        """The value of a field; None where there is none.

        Args:
            field: a column, whatever spaces its header has around it, or a dotted path into nested values and lists,
                as ``prompt.0.content``; a column that is itself called so comes first.
        """
        if field in self.values:
            return self.values[field]
        first, *inner = field.split(".")
        if first in self.values:
            return _inside(self.values[first], inner)
        named = {name.strip(): value for name, value in self.values.items() if isinstance(name, str)}
        return named[field] if field in named else _inside(named.get(first), inner)


def _inside(value: Any, path: list[str]) -> Any:
    for name in path:
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing: null, an empty text, or the NaN that tables write for one."""
    if isinstance(value, (float, Decimal)):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def text_of(row: Row, field: str) -> str | BadRow:
    r"""The field's text, stripped; numbers become text.

    A BadRow when it is missing, empty, not UTF-8, or has control characters where LaTeX had backslashes.
    """
    value = row.get(field)
    if value is None:
        found = ", ".join(str(name) for name in row.values if name is not None)
        return row.bad(field, f"the field is missing (found: {found or 'nothing'}); add it or drop the row")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        value = str(value)
    if is_blank(value):
        return row.bad(field, "the field is empty; fill it in or drop the row")
    if not isinstance(value, str):
        return row.bad(field, _not_text(value, field))
    if not value.isascii() and not _is_utf8(value):
        return row.bad(field, "not UTF-8; save the file as UTF-8")
    # The first is the quicker, and most often true.
    lost = None if value.isprintable() else LOST_BACKSLASH.search(value)
    return row.bad(field, _lost_backslash(lost[0])) if lost else value.strip()


def _not_text(value: Any, field: str) -> str:
    advice = (
        f"name the text inside it, for example {field}.0.content" if isinstance(value, list) else "write it as text"
    )
    advice = f"name the text inside it, {field}.{next(iter(value))}" if isinstance(value, dict) and value else advice
    return f"expected text, found {type(value).__name__} {str(value)[:40]!r}; {advice}"


def _lost_backslash(found: str) -> str:
    letter = _LETTERS.get(found[0])
    command = f": \\{letter}{found[1:]} was written with" if letter else ":"
    return (
        f"a control character ({found[0]!r}) stands before {found[1:]!r}{command} one backslash; JSON needs two "
        "(\\\\frac), so write the file again"
    )


def _is_utf8(text: str) -> bool:
    # Bytes that are not UTF-8 were read as lone surrogates, which cannot be encoded.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
