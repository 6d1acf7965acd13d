"""Rows of Parquet, JSONL, JSON and CSV files, each with the place that a message can name.

One idea: a broken row is a value among the others, a `BadRow` that says file, row, field and what to
do; whoever reads decides whether to go on.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline_lib.config import ConfigError

MAX_CELL_CHARS = 16 * 1024 * 1024


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


def read_rows(path: Path) -> Iterator[Row | BadRow]:
    """Every record of one file, in order, without holding the file in memory (JSON apart).

    Raises:
        ProblemsError: the file cannot be read at all.
    """
    try:
        yield from READERS[path.suffix.lower()](path)
    except OSError as error:
        raise ProblemsError(f"{path}: {error.strerror or error}; check problems.path") from None


def text_of(row: Row, field: str) -> str | BadRow:
    """The field's text, stripped; numbers become text; a BadRow when it is missing, empty or not UTF-8."""
    value = row.values.get(field)
    if value is None:
        found = ", ".join(str(name) for name in row.values if name is not None)
        return row.bad(field, f"the field is missing (found: {found or 'nothing'}); add it or drop the row")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str):
        return row.bad(field, f"expected text, found {type(value).__name__} {str(value)[:40]!r}; write it as text")
    if not value.isascii() and not _is_utf8(value):
        return row.bad(field, "not UTF-8; save the file as UTF-8")
    return value.strip() or row.bad(field, "the field is empty; fill it in or drop the row")


def _is_utf8(text: str) -> bool:
    # Bytes that are not UTF-8 were read as lone surrogates, which cannot be encoded.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path) -> Iterator[Row | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from (Row(str(path), row + i, values) for i, values in enumerate(_records(batch), start=1))
                row += batch.num_rows
    except pa.ArrowException as error:
        first = str(error).partition("\n")[0]
        raise ProblemsError(f"{path}, after row {row}: not a readable Parquet file ({first}); write it again") from None


def _records(batch: Any) -> list[dict[str, Any]]:
    import pyarrow as pa

    try:
        records: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        # Arrow does not check text; as bytes the broken cell can be told from the others.
        columns = {
            name: column.cast(pa.large_binary()) if _is_text(column.type) else column
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        records = pa.RecordBatch.from_pydict(columns).to_pylist()
    return records


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _read_jsonl(path: Path) -> Iterator[Row | BadRow]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_row(path, number, line)


def _read_json(path: Path) -> Iterator[Row | BadRow]:
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if not text.lstrip().startswith("["):
        yield _json_row(path, 1, text)
        return
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProblemsError(f"{path}: not valid JSON ({error}); repair the file") from None
    for number, record in enumerate(records, start=1):
        yield _row_of(path, number, record)


def _json_row(path: Path, number: int, text: str) -> Row | BadRow:
    try:
        return _row_of(path, number, json.loads(text))
    except (ValueError, RecursionError) as error:
        return BadRow(str(path), number, "", f"not valid JSON ({error}); repair the line or drop it")


def _row_of(path: Path, number: int, record: Any) -> Row | BadRow:
    if isinstance(record, dict):
        return Row(str(path), number, record)
    return BadRow(str(path), number, "", f"expected an object, found {type(record).__name__}; write {{...}}")


def _read_csv(path: Path) -> Iterator[Row | BadRow]:
    csv.field_size_limit(MAX_CELL_CHARS)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        number = 0
        while True:
            number += 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(str(path), number, "", f"not valid CSV ({error}); check the quotes")
                continue
            if None in record:
                yield BadRow(str(path), number, "", "more cells than the header; put quotes around text with commas")
            else:
                yield Row(str(path), number, record)


READERS: dict[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}
