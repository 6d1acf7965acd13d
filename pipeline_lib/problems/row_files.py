"""Files of rows: Parquet, JSONL, JSON and CSV, each record with its place."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pipeline_lib.problems.rows import BadRow, ProblemsError, Row

MAX_CELL_CHARS = 16 * 1024 * 1024
MARKS = {  # the longer one first: that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_rows(path: Path) -> Iterator[Row | BadRow]:
    """Every record of one file, in order, without holding the file in memory (a JSON list apart).

    Raises:
        ProblemsError: the file cannot be read at all.
    """
    try:
        yield from READERS[path.suffix.lower()](path)
    except UnicodeError as error:
        raise ProblemsError(f"{path}: cannot be decoded ({error}); save it as UTF-8") from None
    except OSError as error:
        raise ProblemsError(f"{path}: {error.strerror or error}; check problems.path") from None


def _open_text(path: Path, newline: str | None = None) -> IO[str]:
    """The file as text: UTF-8, or what its byte order mark says."""
    with path.open("rb") as file:
        head = file.read(4)
    encoding = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    if encoding is not None:
        return path.open(encoding=encoding, newline=newline)
    if b"\0" in head:
        raise ProblemsError(f"{path}: not UTF-8, it looks like UTF-16 without a byte order mark; save it as UTF-8")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


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


def _read_json(path: Path) -> Iterator[Row | BadRow]:
    """An object a line or one value, whichever it is: ``.jsonl`` and ``.json`` are often taken for each other."""
    with _open_text(path) as file:
        first, second = [*islice((line.strip() for line in file if line.strip()), 2), "", ""][:2]
    is_whole = _is_list(first, second) if path.suffix.lower() == ".jsonl" else not _is_first_line(first, second)
    yield from (_read_json_value(path) if is_whole else _read_json_lines(path))


def _is_first_line(first: str, second: str) -> bool:
    """Whether a file's first two lines are those of JSONL."""
    return first.startswith("{") and first.endswith("}") and second.startswith("{")


def _is_list(first: str, second: str) -> bool:
    """Whether a file's first two lines are those of one JSON list of objects."""
    return first == "[" or (first.startswith("[{") and (first.endswith(",") or not second))


def _read_json_lines(path: Path) -> Iterator[Row | BadRow]:
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_row(path, number, line)


def _read_json_value(path: Path) -> Iterator[Row | BadRow]:
    with _open_text(path) as file:
        text = file.read()
    if not text.lstrip().startswith("["):
        yield _json_row(path, 1, text)
        return
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProblemsError(f"{path}: {_not_json(error)}; repair the file") from None
    for number, record in enumerate(records, start=1):
        yield _row_of(path, number, record)


def _json_row(path: Path, number: int, text: str) -> Row | BadRow:
    try:
        return _row_of(path, number, json.loads(text))
    except (ValueError, RecursionError) as error:
        return BadRow(str(path), number, "", f"{_not_json(error)}; repair the line or drop it")


def _not_json(error: Exception) -> str:
    hint = ", where each backslash of LaTeX is written twice" if "escape" in str(error) else ""
    return f"not valid JSON{hint} ({error})"


def _row_of(path: Path, number: int, record: Any) -> Row | BadRow:
    if isinstance(record, dict):
        return Row(str(path), number, record)
    return BadRow(str(path), number, "", f"expected an object, found {type(record).__name__}; write {{...}}")


def _read_csv(path: Path) -> Iterator[Row | BadRow]:
    csv.field_size_limit(MAX_CELL_CHARS)
    with _open_text(path, newline="") as file:
        reader = csv.DictReader(file, strict=True, skipinitialspace=True)
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
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
}
