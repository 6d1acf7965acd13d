"""One run of a study: the command that a user would type, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from pipeline_lib.config import Settings
from pipeline_lib.config.yaml_file import config_yaml
from pipeline_lib.store import read_json, write_json
from pipeline_lib.study.cell_result import CellResult, result_of
from pipeline_lib.study.grid import Cell

COMMAND = (sys.executable, "-m", "deployments.command.app")
_RUNNING: set[subprocess.Popen[bytes]] = set()
_ENDED = threading.Event()  # set once no cell may begin any more


class CellError(RuntimeError):
    """A run of a study failed; the message is its last word and where its log is."""


def study_folder(name: str) -> Path:
    """Where the runs of a study of this name leave their settings, logs and summaries, and by default its results."""
    return Settings().home.resolve() / "studies" / name


def run_command(cell: Cell, config: Path, summary: Path) -> list[str]:
    """What a user would type for a cell.

    Args:
        cell: what is run.
        config: file of its settings.
        summary: file for what it comes to.
    """
    subcommand = ("run",) if cell.kind == "run" else ("baseline",)
    options = [word for setting in cell.options for word in ("--grpo", setting)]
    budget = [] if cell.tokens is None else ["--tokens", str(cell.tokens)]
    return [*COMMAND, *subcommand, "--config", str(config), "--summary", str(summary), *options, *budget]


@task(name="study-cell", task_run_name="{cell.label}", cache_policy=NO_CACHE, persist_result=False)
def run_cell(cell: Cell, study: str, output: Path) -> dict[str, Any] | State[Any]:
    """Runs a cell to its end, unless its result is there, which another machine may have made.

    Args:
        cell: what is run.
        study: name of the study.
        output: the study's folder of results.

    Raises:
        CellError: its command failed, or the study has ended; what it finished is kept, and the next attempt goes on.
    """
    result = result_file(cell, output)
    if result.is_file():
        return Completed(name="Cached", message=f"{result.name} is there")
    if _ENDED.is_set():
        raise CellError(f"{cell.label}: the study was ended before it began")
    folder = study_folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    summary = folder / f"{cell.key}.json"
    config, log = summary.with_suffix(".yaml"), summary.with_suffix(".log")
    config.write_text(config_yaml(cell.config), encoding="utf-8")
    with log.open("ab") as stream:
        code = _wait_for(run_command(cell, config, summary), stream)
    if code != 0:
        raise CellError(f"{cell.label}: exit code {code}, {_last_line(log)}; log: {log}")
    result.parent.mkdir(parents=True, exist_ok=True)
    write_json(result, result_of(cell, read_json(summary)).model_dump(mode="json"))
    return Completed(name="Completed", message=str(result))


def result_file(cell: Cell, output: Path) -> Path:
    """Where a cell's result lies in a study's folder of results."""
    return output / "cells" / f"{cell.key}.json"


def cell_result(cell: Cell, output: Path) -> CellResult:
    """What a cell came to, once `run_cell` has ended."""
    return CellResult.model_validate(read_json(result_file(cell, output)))


@contextmanager
def cells_end_with_it() -> Iterator[None]:
    """When the block ends, so do cells that are going on, as a scheduler ends them, and none that waits begins."""
    _ENDED.clear()
    try:
        yield
    finally:
        _ENDED.set()
        for process in list(_RUNNING):
            process.terminate()


def _wait_for(command: Sequence[str], output: Any) -> int:
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    _RUNNING.add(process)
    if _ENDED.is_set():  # it ended while this one began
        process.terminate()
    try:
        return process.wait()
    finally:
        _RUNNING.discard(process)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said")
