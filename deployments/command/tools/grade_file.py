"""Grades a JSONL file: predictions and right answers in, the same rows with their grades out.

One idea: the whole input is checked before the first row is graded, and the output gets its name only
when it is complete. So a bad row costs a second, and no file is ever half written.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline_lib.config import ConfigError
from pipeline_lib.grading import Conventions, Grade, Graded, GradingPool

LOGGER = logging.getLogger("coppice.progress")
FIELDS = ("gold", "prediction")
WINDOW = 4096
"""Rows read and not yet written: a slow answer holds back the rows after it, and their number is bounded."""
REPORT_EVERY_S = 0.2

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GradeCounts:
    """How many rows got which grade, and in how many seconds, the start of the workers included."""

    grades: Counter[Grade]
    seconds: float


def grade_file(
    input_file: Path,
    output: Path,
    *,
    conventions: Conventions | None = None,
    grader: str = "math",
    num_workers: int | None = None,
) -> GradeCounts:
    """Writes every row of `input_file` with ``grade`` and ``answer`` to `output`, in the same order.

    An ``answer`` that the row already has is never overwritten, not even in a file that was graded before: where it
    is another one, what was extracted is called ``extracted``. A verifier adds ``reward``, and ``reason`` where it has
    one. ``grade``, ``extracted``, ``reward`` and ``reason`` of an earlier grading are replaced, or go.

    Args:
        input_file: JSONL; each row has ``gold`` and ``prediction``, texts or numbers; a prediction may be null: there
            is none, so it is unparsed. Empty lines are skipped.
        output: replaced when all rows are graded; may be `input_file`.
        conventions: what counts as equal where opinions differ; None takes the defaults.
        grader: ``math``, or ``my_package.my_module:verify``.
        num_workers: processes at most; None takes half of the cores.

    Raises:
        ConfigError: a file that cannot be read or written, or a bad row; file, row and field are named.
        GradingError: no worker could be started, or the verifier could not be loaded.
    """
    output = output.resolve()  # a link stays a link
    if output.exists() and not output.is_file():
        raise ConfigError(f"--output {output}: is no regular file; name another one")
    num_rows = sum(1 for _ in read_rows(input_file))
    grades: Counter[Grade] = Counter()
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    started = reported = time.perf_counter()
    try:
        pool = GradingPool(num_workers, conventions=conventions or Conventions(), grader=grader)
        with pool, partial.open("w", encoding="utf-8") as stream:
            for row in _grade_rows(read_rows(input_file), pool):
                stream.write(json.dumps(row) + "\n")
                grades[row["grade"]] += 1
                if time.perf_counter() - reported > REPORT_EVERY_S:
                    reported = time.perf_counter()
                    _report_progress(grades.total(), num_rows)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    _report_progress(num_rows, num_rows)
    return GradeCounts(grades, time.perf_counter() - started)


def read_rows(path: Path) -> Iterator[Row]:
    """The file's rows, each checked.

    Raises:
        ConfigError: the file cannot be read, a row is no JSON object, or a field is missing or neither text nor a
            finite number.
    """
    if not path.is_file():
        raise ConfigError(f"--input {path}: no such file")
    with path.open("rb") as stream:  # bytes: only a line feed ends a row, whatever else a text may hold
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _parse_row(line, f"--input {path}, row {number}")


class _WrittenFloat(float):
    """A number that remembers its digits: 0.10 is graded as 0.10, a long decimal by all of them."""

    def __new__(cls, written: str) -> _WrittenFloat:
        number = super().__new__(cls, written)
        number._written = written
        return number

    def __str__(self) -> str:
        return self._written

    _written: str


def _parse_row(line: bytes, place: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_float=_WrittenFloat)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: expected an object with the fields {' and '.join(FIELDS)}")
    for name in FIELDS:
        if name not in row:
            raise ConfigError(f"{place}: field {name!r} is missing")
        if isinstance(row[name], (bool, list, dict)) or (row[name] is None and name == "gold"):
            raise ConfigError(f"{place}: field {name!r} is neither text nor a number: {str(row[name])[:40]}")
        if isinstance(row[name], float) and not math.isfinite(row[name]):
            raise ConfigError(f"{place}: field {name!r} is no finite number: {str(row[name])[:40]}")
    return row


def _text_of(row: Row, field: str) -> str:
    """What is graded: a number as it is written, nothing for a null."""
    value = row[field]
    return "" if value is None else str(value)


def _with_result(row: Row, result: Graded) -> Row:
    """The row with its grade; what a grading added earlier is replaced, an answer that may be the row's own is not."""
    was_graded = row.get("grade") in list(Grade)
    kept = {name: value for name, value in row.items() if not (was_graded and name in ("reward", "reason"))}
    field = "answer" if _has_no_own_answer(row, result, was_graded=was_graded) else "extracted"
    added: Row = {"grade": result.grade, field: result.answer}
    if result.reward is not None:
        added["reward"] = result.reward
    if result.reason:
        added["reason"] = result.reason
    return {**kept, **added}


def _has_no_own_answer(row: Row, result: Graded, *, was_graded: bool) -> bool:
    """Whether writing ``answer`` loses nothing: there is none, or an earlier grading left the same one, or null.

    A grade alone tells nothing, people write it too; ``extracted`` tells that the answer beside it is the row's own.
    """
    if "answer" not in row:
        return True
    return was_graded and "extracted" not in row and row["answer"] in (None, result.answer)


def _grade_rows(rows: Iterator[Row], pool: GradingPool) -> Iterator[Row]:
    """The rows with their grades, in order; each as soon as all before it are graded."""
    waiting: deque[tuple[str, Row]] = deque()
    graded: dict[str, Graded] = {}
    for number, row in enumerate(rows):
        pool.submit(str(number), _text_of(row, "prediction"), _text_of(row, "gold"))
        waiting.append((str(number), row))
        graded.update(pool.poll_answers(block=False))
        yield from _take_graded(waiting, graded)
        while len(waiting) >= WINDOW:
            graded.update(pool.poll_answers(block=True))
            yield from _take_graded(waiting, graded)
    while waiting:
        graded.update(pool.poll_answers(block=True))
        yield from _take_graded(waiting, graded)


def _take_graded(waiting: deque[tuple[str, Row]], graded: dict[str, Graded]) -> Iterator[Row]:
    """Takes the first rows, as long as they are graded, from both."""
    while waiting and waiting[0][0] in graded:
        key, row = waiting.popleft()
        yield _with_result(row, graded.pop(key))


def _report_progress(completed: int, total: int) -> None:
    LOGGER.info("", extra={"stage": "grade", "completed": completed, "total": total})


def print_counts(counts: GradeCounts, *, console: Console | None = None) -> None:
    """Prints the speed, and below it one line per grade."""
    console = console or Console()
    total, seconds = counts.grades.total(), counts.seconds
    console.print(f"{total} answers in {seconds:.1f} s, {total / seconds:.0f} per second", highlight=False)
    table = Table()  # narrower than that line, which as its title would break at some speeds
    table.add_column("grade")
    for name in ("answers", "share (%)"):
        table.add_column(name, justify="right")
    for grade in Grade:
        count = counts.grades[grade]
        table.add_row(grade.value, str(count), f"{100 * count / max(total, 1):.1f}")
    console.print(table)
