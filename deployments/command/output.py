"""What a run looks like on the terminal: progress while it goes, a table and two addresses at its end.

One idea: progress travels as log records, so that no library below has to know of a terminal.
Whoever works calls ``logging.getLogger("coppice.progress").info(text, extra={"stage": "search 1",
"completed": 40, "total": 400})``.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline_lib.config import PipelineConfig
from pipeline_lib.report.notes import promotion_line
from pipeline_lib.report.sanity import single_iteration_checks
from pipeline_lib.report.signatures import failure_signatures
from pipeline_lib.report.tables import IterationRow, format_accuracy, records_table, tested_datasets
from pipeline_lib.tracking.outage import without_password
from pipeline_lib.types import EvalReport, IterationRecord, JsonDict, RunResult

if TYPE_CHECKING:
    from deployments.preflight.check import Answer

PROGRESS_LOGGER = "coppice.progress"
VERDICT_STYLES = {"ok": "green", "problem": "bold red", "not asked": "dim"}
SEARCH_KEYS = {  # in the summary: in the record
    "tokens_per_s": "tokens_per_s",
    "engine_idle_share": "engine_idle_share",
    "tokens_generated": "tokens_generated",
    "tokens_kept": "tokens_kept",
    "rollouts": "num_rollouts",
}


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
            self._progress.console.print(record.getMessage(), highlight=False)
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


def results_table(result: RunResult) -> Table:
    """The closing table: one row per iteration, accuracies in per cent ± half the 95 % interval."""
    table = Table(title="Test accuracy in %, ± half the 95 % interval", title_justify="left")
    table.add_column("iteration")
    datasets = tested_datasets(result.records)
    for name in (*datasets, "informative", "variance", "KL", "tokens", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("decision")
    for row in records_table(result.records, result.decision):
        table.add_row(*_cells(row, datasets), style="bold green" if row.decision == "champion" else None)
    return table


def print_result(
    result: RunResult, config: PipelineConfig, *, tracking_uri: str, console: Console | None = None
) -> None:
    """Prints the table, the champion and its reason, what went wrong if anything did, and how to open both UIs."""
    console = console or Console()
    if not console.is_terminal:
        console.width = 160  # nobody's window: a pipe would otherwise cut the table at 80
    console.print(results_table(result))
    champion = result.decision.champion
    lines = [
        f"champion: {'the base' if champion == 0 else f'iteration {champion}'} ({result.decision.reason})",
        f"stopped because: {result.stopped_because} ({result.wall_s:.0f} s in all)",
        *_registry_lines(result, config),
        *notice_lines(result, config),
        *ui_lines(tracking_uri),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _registry_lines(result: RunResult, config: PipelineConfig) -> list[str]:
    """What became of the alias that deployments load, unless it never was in question."""
    if result.promotion is None or result.promotion.version is None:
        return []
    return [f"registry: {promotion_line(result.promotion, f'coppice-{config.preset}')}"]


def print_reports(reports: Sequence[EvalReport], *, console: Console | None = None) -> None:
    """Prints one line per evaluated dataset."""
    table = Table("dataset", "split", "problems", "accuracy (%)", "unparsed", "truncated")
    for report in reports:
        counts = [
            str(report.num_problems),
            format_accuracy(report),
            str(report.num_unparsed),
            str(report.num_truncated),
        ]
        table.add_row(report.dataset, report.split, *counts)
    (console or Console()).print(table)


def print_answers(answers: Iterable[Answer], *, console: Console | None = None) -> int:
    """Prints each line of `coppice check` as it comes; returns how many problems there were."""
    console = console or Console()
    num_problems = 0
    for answer in answers:
        num_problems += answer.verdict == "problem"
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=10, style=VERDICT_STYLES[answer.verdict])
        grid.add_column(width=11)
        grid.add_column(overflow="fold")
        grid.add_row(answer.verdict, answer.question, escape(answer.text))
        console.print(grid)
    found = "nothing stands in the way of a run" if num_problems == 0 else f"problems: {num_problems}"
    console.print(found, highlight=False)
    return num_problems


def notice_lines(result: RunResult, config: PipelineConfig) -> list[str]:
    """A line per failure signature, and what a single iteration can and cannot tell; none for a healthy longer run."""
    signatures = failure_signatures(result, config)
    lines = [f"noticed: {found.title[0].lower() + found.title[1:]} ({found.evidence})" for found in signatures]
    if signatures:
        lines.append("what that means and what to try: coppice report")
    if checks := single_iteration_checks(result, config):
        lines.append("sanity check: " + ", ".join(f"{check.name} {check.verdict}" for check in checks))
        lines.append("one iteration cannot tell whether a second one gains again or declines: 2 to 4 can")
    return lines


def ui_lines(tracking_uri: str) -> list[str]:
    """How to open Prefect's UI and MLflow's, with the commands of this environment."""
    from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

    prefect, mlflow = PREFECT_UI_URL.value() if PREFECT_API_URL.value() else None, without_password(tracking_uri)
    if not mlflow.startswith("http"):
        mlflow = f"{_command('mlflow')} ui --backend-store-uri {mlflow}   then http://127.0.0.1:5000"
    return [
        f"stages and artifacts:  {prefect or _command('prefect') + ' server start   then http://127.0.0.1:4200'}",
        f"metrics and models:    {mlflow}",
    ]


def summary_json(result: RunResult, config: PipelineConfig) -> JsonDict:
    """What ``--summary`` writes; accuracies are those of the test splits, in [0, 1].

    An iteration that did not train moved nothing: 0 updates, 0 tokens, KL 0. What was not measured is null.
    """
    base, *iterations = result.records
    champion = next((r for r in result.records if r.index == result.decision.champion), base)
    return {
        "preset": config.preset,
        "seed": config.seed,
        "wall_s": result.wall_s,
        "base": _accuracies(base),
        "iterations": [_iteration_json(record) for record in iterations],
        "champion": {"iteration": champion.index, "accuracy": _accuracies(champion)},
        "stopped_because": result.stopped_because,
    }


def _iteration_json(record: IterationRecord) -> JsonDict:
    audit, train = record.audit, record.train
    return {
        "index": record.index,
        "accuracy": _accuracies(record),
        "interval": {e.dataset: list(e.interval) for e in record.evaluations if e.split == "test"},
        "audit": audit and audit.model_dump(include={"variance", "informative_share", "passed", "reason"}),
        "search": {name: _finite(record.search.get(key)) for name, key in SEARCH_KEYS.items()},
        "train": {
            "updates": int(train.get("updates", 0)),
            "kl": _finite(train.get("kl", 0.0)),
            "tokens": int(train.get("tokens", 0)),
        },
        "seconds": dict(record.seconds),
    }


def _accuracies(record: IterationRecord) -> dict[str, float]:
    return {e.dataset: e.accuracy for e in record.evaluations if e.split == "test"}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None  # JSON has no nan


def _cells(row: IterationRow, datasets: Sequence[str]) -> list[str]:
    accuracies = [row.accuracies[name] for name in datasets]
    return [row.name, *accuracies, row.informative_share, row.variance, row.kl, row.tokens, row.seconds, row.decision]


def _command(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.exists():
        return name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
