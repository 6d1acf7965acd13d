"""One run of a study: the command that a user would type, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from pipeline_lib.config import Settings
from pipeline_lib.config.yaml_file import config_yaml
from pipeline_lib.store import read_json
from pipeline_lib.study.cell_result import CellResult, result_of
from pipeline_lib.study.grid import Cell

COMMAND = (sys.executable, "-m", "deployments.command.app")
_RUNNING: set[subprocess.Popen[bytes]] = set()
_ENDED = threading.Event()  # set once no cell may begin any more


class CellError(RuntimeError):
    """A run of a study failed; the message is its last word and where its log is."""


def study_folder(name: str) -> Path:
    """Where the runs of a study of this name leave their settings, logs and summaries."""
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
def run_cell(cell: Cell, study: str) -> dict[str, Any] | State[Any]:
    """Runs a cell to its end, unless its summary is there.

    Raises:
        CellError: its command failed, or the study has ended; what it finished is kept, and the next attempt goes on.
    """
    if _ENDED.is_set():
        raise CellError(f"{cell.label}: the study was ended before it began")
    folder = study_folder(study)
    summary = folder / f"{cell.key}.json"
    if summary.is_file():
        return Completed(name="Cached", message=f"{summary.name} is there")
    folder.mkdir(parents=True, exist_ok=True)
    config, log, fresh = (summary.with_suffix(suffix) for suffix in (".yaml", ".log", ".new"))
    config.write_text(config_yaml(cell.config), encoding="utf-8")
    with log.open("ab") as output:
        code = _wait_for(run_command(cell, config, fresh), output)
    if code != 0:
        raise CellError(f"{cell.label}: exit code {code}, {_last_line(log)}; log: {log}")
    fresh.rename(summary)  # whole or not there
    return Completed(name="Completed", message=str(summary))


def cell_result(cell: Cell, study: str) -> CellResult:
    """What a cell came to, once `run_cell` has ended."""
    summary: Mapping[str, Any] = read_json(study_folder(study) / f"{cell.key}.json")
    return result_of(cell, summary)


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
