from __future__ import annotations

import io
import logging
import logging.config
import time
from pathlib import Path

from rich.console import Console

from deployments.command.output.progress_bar import show_progress
from tasks.runtime.progress_lines import PROGRESS_LOGGER, RunLog, StageState, duration, lines_of

LOGGER = logging.getLogger(PROGRESS_LOGGER)


def test_progress_off_a_terminal_is_a_line_per_finished_stage() -> None:
    stream = io.StringIO()
    with show_progress(Console(file=stream)):
        for completed in (0, 1, 2, 2):
            LOGGER.info("searching", extra={"stage": "search 1", "completed": completed, "total": 2})
        LOGGER.info("iteration 1 passed its audit")
    assert stream.getvalue().splitlines() == ["search 1: 2/2 in 0 s", "iteration 1 passed its audit"]
    assert LOGGER.handlers == []


def test_a_stage_that_goes_on_says_so_with_share_rate_and_time_left() -> None:
    state = StageState(152, 400, lambda: 1_800_000.0, started=0.0)
    assert state.describe(374.0) == "38 % (152/400), 4,813 tokens/s, 10 min left"
    assert StageState(0, 400, None, started=0.0).describe(60.0) == "0 % (0/400)"
    assert [duration(seconds) for seconds in (7, 95, 7500)] == ["7 s", "2 min", "2 h 5 min"]


def test_the_clock_speaks_while_nothing_finishes_and_is_silent_after_the_end() -> None:
    lines: list[str] = []
    with lines_of(lines.append, interval_s=0.05) as handler:
        for completed in (0, 1):
            told = {"stage": "search 1", "completed": completed, "total": 2, "tokens": lambda: 9.0}
            handler.emit(logging.makeLogRecord(told))
        deadline = time.monotonic() + 30
        while len(lines) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        handler.emit(logging.makeLogRecord({"stage": "search 1", "completed": 2, "total": 2}))
        told_so_far = len(lines)
        time.sleep(0.2)
    assert lines[0].startswith("search 1: 50 % (1/2), ")
    assert " tokens/s, " in lines[0]
    assert lines[told_so_far - 1].startswith("search 1: 2/2 in ")
    assert len(lines) == told_so_far


def test_the_clock_goes_on_after_a_library_has_configured_logging_anew() -> None:
    lines: list[str] = []
    with lines_of(lines.append, interval_s=0.05) as handler:
        handler.emit(logging.makeLogRecord({"stage": "search 1", "completed": 0, "total": 2}))
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})  # vLLM does, when it is imported
        told_so_far, deadline = len(lines), time.monotonic() + 10
        while len(lines) < told_so_far + 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert set(lines) == {"search 1: 0 % (0/2)"}


def test_a_runs_log_keeps_each_line_once_with_its_time(tmp_path: Path) -> None:
    log, file = RunLog(), tmp_path / "runs" / "a" / "run.log"
    elsewhere = logging.StreamHandler(io.StringIO())
    logging.getLogger("coppice").addHandler(elsewhere)
    log.open(file)
    LOGGER.info("made again")
    LOGGER.warning("2 rows skipped")
    logging.getLogger("coppice.tracking").warning("no answer")
    log.close()
    logging.getLogger("coppice").removeHandler(elsewhere)
    LOGGER.warning("nobody keeps this")
    log.say("nor this")
    said = [line.split(" ", 2)[2] for line in file.read_text().splitlines()]
    assert said == ["made again", "2 rows skipped", "no answer"]
    assert elsewhere.stream.getvalue().splitlines() == ["2 rows skipped", "no answer"]
