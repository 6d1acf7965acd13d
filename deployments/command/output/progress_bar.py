"""Progress on the terminal: one bar per stage.

One idea: progress travels as log records, so that no library below has to know of a terminal. Whoever works calls
``logging.getLogger("coppice.progress").info(text, extra={"stage": "search 1", "completed": 40, "total": 400})``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

PROGRESS_LOGGER = "coppice.progress"


class ProgressHandler(logging.Handler):
    """Turns progress records into one bar per stage; off a terminal, into one line per finished stage."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.INFO)
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self._done: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        stage = getattr(record, "stage", None)
        if stage is None:
            self._progress.console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)
            return
        completed, total = getattr(record, "completed", 0), getattr(record, "total", None)
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._bars[stage], completed=completed, total=total)
        if total is not None and completed >= total and stage not in self._done:
            self._done.add(stage)
            if not self._progress.console.is_terminal:
                self._progress.console.print(f"{stage}: {completed}/{total}", highlight=False)


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[None]:
    """Shows the records of the logger ``coppice.progress`` while the block runs."""
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    handler, logger = ProgressHandler(progress), logging.getLogger(PROGRESS_LOGGER)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with progress:
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
