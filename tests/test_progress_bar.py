from __future__ import annotations

import io
import logging

from rich.console import Console

from deployments.command.output.progress_bar import PROGRESS_LOGGER, show_progress


def test_progress_off_a_terminal_is_a_line_per_finished_stage() -> None:
    logger = logging.getLogger(PROGRESS_LOGGER)
    stream = io.StringIO()
    with show_progress(Console(file=stream)):
        for completed in (0, 1, 2, 2):
            logger.info("searching", extra={"stage": "search 1", "completed": completed, "total": 2})
        logger.info("iteration 1 passed its audit")
    assert stream.getvalue().splitlines() == ["search 1: 2/2", "iteration 1 passed its audit"]
    assert logger.handlers == []
