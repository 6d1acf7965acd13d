"""Progress as lines of text, for a pipe and for a run's own log: one a minute for what goes on, one where it ends.

It reads the records of `progress`, and nothing here loads the orchestrator. A clock of its own writes, so that a stage
says that it lives though nothing of it finishes for an hour.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PROGRESS_LOGGER = "coppice.progress"
INTERVAL_S = 60.0


@dataclass(slots=True)
class StageState:
    """How far a stage is.

    Args:
        completed: how much of it is done.
        total: how much of it there is; None where nobody knows.
        tokens: how many tokens it has sampled or trained on so far; None where it counts none.
    """

    completed: int
    total: int | None
    tokens: Callable[[], float] | None
    started: float = field(default_factory=time.monotonic)

    @property
    def is_done(self) -> bool:
        return self.total is not None and self.completed >= self.total

    def describe(self, now: float) -> str:
        """Share done, tokens per second and time left, as far as they are known.

        Args:
            now: of `time.monotonic`.

        Example: ``38 % (152/400), 4,812 tokens/s, 6 min left``
        """
        seconds = max(now - self.started, 1e-9)
        words = []
        if self.total:
            words.append(f"{100 * self.completed / self.total:.0f} % ({self.completed}/{self.total})")
        if rate := self._tokens_per_s(seconds):
            words.append(rate)
        if self.total and 0 < self.completed < self.total:
            words.append(f"{duration(seconds / self.completed * (self.total - self.completed))} left")
        return ", ".join(words)

    def describe_end(self, now: float) -> str:
        """What it did, how long that took and how fast it was.

        Example: ``400/400 in 9 min, 4,812 tokens/s``
        """
        seconds = max(now - self.started, 1e-9)
        words = [f"{self.completed}/{self.total} in {duration(seconds)}"]
        if rate := self._tokens_per_s(seconds):
            words.append(rate)
        return ", ".join(words)

    def _tokens_per_s(self, seconds: float) -> str:
        tokens = self.tokens() if self.tokens is not None else 0.0
        return f"{tokens / seconds:,.0f} tokens/s" if tokens else ""


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example: ``duration(95) == "2 min"``, ``duration(7500) == "2 h 5 min"``
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class LineHandler(logging.Handler):
    """Hands progress records on as lines; `end` ends its clock.

    Not `close`: whoever configures logging anew, as vLLM does when it is imported, closes every handler there is.

    Args:
        write: gets each line.
        interval_s: seconds between two lines about a stage that goes on.
    """

    def __init__(self, write: Callable[[str], None], *, interval_s: float = INTERVAL_S) -> None:
        super().__init__(logging.INFO)
        self._write, self._interval_s = write, interval_s
        self._stages: dict[str, StageState] = {}
        self._done: set[str] = set()
        self._last: logging.LogRecord | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._tick, daemon=True, name="coppice-progress").start()

    def emit(self, record: logging.LogRecord) -> None:
        if record is self._last:  # it came by two loggers
            return
        self._last = record
        stage = getattr(record, "stage", None)
        if stage is None:
            self._write(record.getMessage())
            return
        completed, total = getattr(record, "completed", 0), getattr(record, "total", None)
        if stage in self._done and completed == total:
            return
        self._done.discard(stage)
        state = self._stages.setdefault(stage, StageState(completed, total, None))
        state.completed, state.total = completed, total
        state.tokens = getattr(record, "tokens", None) or state.tokens
        if state.is_done:
            del self._stages[stage]
            self._done.add(stage)
            if total:
                self._write(f"{stage}: {state.describe_end(time.monotonic())}")

    def end(self) -> None:
        """Ends the clock: nothing more is said of what goes on."""
        self._ended.set()
        self.close()

    def _tick(self) -> None:
        while not self._ended.wait(self._interval_s):
            now = time.monotonic()
            with suppress(RuntimeError):  # another stage begins at this very moment: a minute later, then
                for stage, state in self._stages.items():
                    self._write(f"{stage}: {state.describe(now)}")


class RunLog:
    """The file below the home that keeps what a run said, and when; at most one is open in a process."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._handler: LineHandler | None = None

    def open(self, file: Path) -> None:
        """Appends from now on to `file`; what was open before is closed."""
        self.close()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._handler = file, LineHandler(self.say)
        progress = logging.getLogger(PROGRESS_LOGGER)
        logging.getLogger("coppice").addHandler(self._handler)
        progress.addFilter(self._keep)
        if progress.level == logging.NOTSET:
            progress.setLevel(logging.INFO)

    def _keep(self, record: logging.LogRecord) -> bool:
        """Keeps a record of progress; on to a worker's own log go warnings alone, as where none is kept."""
        if self._handler is not None:
            self._handler.handle(record)
        return record.levelno >= logging.WARNING or not logging.getLogger(PROGRESS_LOGGER).propagate

    def say(self, line: str) -> None:
        """Appends a line of its own; nothing where none is open."""
        if self._file is None:
            return
        with suppress(OSError), self._file.open("a", encoding="utf-8") as stream:  # a full disk is told by the stage
            stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def close(self) -> None:
        """Ends what `open` began."""
        if self._handler is None:
            return
        logging.getLogger("coppice").removeHandler(self._handler)
        logging.getLogger(PROGRESS_LOGGER).removeFilter(self._keep)
        self._handler.end()
        self._file = self._handler = None


run_log = RunLog()


@contextmanager
def lines_of(write: Callable[[str], None], *, interval_s: float = INTERVAL_S) -> Iterator[LineHandler]:
    """A `LineHandler` whose clock ends with the block."""
    handler = LineHandler(write, interval_s=interval_s)
    try:
        yield handler
    finally:
        handler.end()
