"""Progress on the terminal: one bar per stage; off a terminal one line a minute.

One idea: progress travels as log records, so that no library below has to know of a terminal. Whoever works calls
``logging.getLogger("coppice.progress").info(text, extra={"stage": "search 1", "completed": 40, "total": 400})``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tasks.runtime.progress_lines import PROGRESS_LOGGER, lines_of


class BarHandler(logging.Handler):
    """Turns progress records into one bar per stage, and others into lines above the bars."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def emit(self, record: logging.LogRecord) -> None:
        stage = getattr(record, "stage", None)
        if stage is None:
            self._progress.console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)
            return
        completed, total = getattr(record, "completed", 0), getattr(record, "total", None)
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._bars[stage], completed=completed, total=total)


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[None]:
    """Shows the records of the logger ``coppice.progress`` while the block runs."""
    console, logger = console or Console(stderr=True), logging.getLogger(PROGRESS_LOGGER)
    level, propagate = logger.level, logger.propagate
    with ExitStack() as stack:
        handler = stack.enter_context(_handler(console))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


@contextmanager
def _handler(console: Console) -> Iterator[logging.Handler]:
    if not console.is_terminal:
        with lines_of(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)) as lines:
            yield lines
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield BarHandler(progress)
