"""Progress for both who look: a bar or lines on the terminal, a progress artifact in the Prefect UI."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from uuid import UUID

from tasks.runtime.artifacts import show_progress

LOGGER = logging.getLogger("coppice.progress")
INTERVAL_S = 2.0


class Progress:
    """Counts up to a total and says so at most every two seconds.

    Args:
        stage: what is going on, as people read it.
        total: how much of it there is.
    """

    def __init__(self, stage: str, total: int) -> None:
        self.stage, self.total, self.completed = stage, total, 0
        self._shown = 0.0
        self._artifact: UUID | None = None
        self._tokens: Callable[[], float] | None = None
        self._show(time.monotonic())

    def count_tokens(self, counter: Callable[[], float]) -> None:
        """From now on tells tokens per second, too.

        Args:
            counter: tokens sampled or trained on so far; what it says now counts as none. Called by another thread.
        """
        before = counter()
        self._tokens = lambda: counter() - before
        self._say()

    def advance(self, count: int = 1) -> None:
        """Counts `count` more."""
        self.reach(self.completed + count)

    def reach(self, completed: int) -> None:
        """Counts up to `completed`."""
        if completed == self.completed:
            return
        self.completed = completed
        now = time.monotonic()
        if now - self._shown > INTERVAL_S or self.completed >= self.total:
            self._show(now)

    def _say(self) -> None:
        told = {"stage": self.stage, "completed": self.completed, "total": self.total, "tokens": self._tokens}
        LOGGER.info("", extra=told)

    def _show(self, now: float) -> None:
        self._shown = now
        self._say()
        percent = 100 * self.completed / max(self.total, 1)
        key = re.sub(r"[^a-z0-9]+", "-", self.stage.lower())
        self._artifact = show_progress(percent, key=key, description=self.stage, known=self._artifact)
