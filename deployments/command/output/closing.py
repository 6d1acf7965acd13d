"""What `coppice run` and `coppice evaluate` print when they have ended: tables, the champion, where to look further."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.report.notes import promotion_line
from pipeline_lib.report.sanity import single_iteration_checks
from pipeline_lib.report.signatures import failure_signatures
from pipeline_lib.report.tables import (
    IterationRow,
    format_accuracy,
    records_table,
    sampled_cells,
    sampled_names,
    sampled_rows,
    samples_in_words,
    tested_datasets,
)
from pipeline_lib.tracking.client import tracking_uri
from pipeline_lib.tracking.history.run_folder import config_file
from pipeline_lib.tracking.outage import without_password
from pipeline_lib.tracking.registered_model import model_name
from pipeline_lib.types import EvalReport, RunResult

SHORT_ID = 8  # characters of a run's id that tell it from others


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


def sampled_table(result: RunResult, config: PipelineConfig) -> Table | None:
    """Samples beside greedy answers, one row per iteration and test set; None where nothing was sampled."""
    names, rows = sampled_rows(result.records)
    if not rows:
        return None
    evaluation = config.evaluation
    count = evaluation.sampled_problems
    title = f"{samples_in_words(evaluation)} for each of the first {count} problems, beside greedy on all, in %"
    table = Table("iteration", "test set", title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def print_result(
    result: RunResult,
    config: PipelineConfig,
    *,
    settings: Settings,
    prefect_page: str | None,
    console: Console | None = None,
) -> None:
    """Prints both tables, the champion and its reason, what went wrong if anything did, where all is, what comes next.

    Args:
        result: what the run came to.
        config: what it was told.
        settings: where home and tracking server are.
        prefect_page: see `ui_lines`.
        console: where to print; standard output if None.
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = 160  # nobody's window: a pipe would otherwise cut the table at 80
    if (sampled := sampled_table(result, config)) is not None:
        console.print(sampled)
    console.print(results_table(result))
    champion = result.decision.champion
    lines = [
        f"champion: {'the base' if champion == 0 else f'iteration {champion}'} ({result.decision.reason})",
        f"stopped because: {result.stopped_because} ({result.wall_s:.0f} s in all)",
        *_registry_lines(result, config),
        *notice_lines(result, config),
        *place_lines(result),
        *ui_lines(tracking_uri(settings), prefect_page, named_by=settings.tracking_variable),
        *next_lines(result, settings.home),
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_baseline(result: RunResult, *, console: Console | None = None) -> None:
    """Prints a baseline's table, the best of its adapters, and where its metrics are."""
    console = console or Console()
    if not console.is_terminal:
        console.width = 160
    console.print(results_table(result))
    best = result.decision.champion
    lines = [
        f"best: {'the base' if best == 0 else f'adapter {best}'} ({result.decision.reason})",
        f"{result.stopped_because} ({result.wall_s:.0f} s in all)",
        *place_lines(result)[:1],
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_reports(reports: Sequence[EvalReport], *, console: Console | None = None) -> None:
    """Prints one line per evaluated dataset."""
    sampled = sampled_names(reports)[1:]
    table = Table("dataset", "split", "problems", "accuracy (%)", "unparsed", "truncated", *sampled)
    for report in reports:
        counts = (report.num_problems, format_accuracy(report), report.num_unparsed, report.num_truncated)
        table.add_row(report.dataset, report.split, *map(str, counts), *sampled_cells(report, sampled))
    (console or Console()).print(table)


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


def ui_lines(uri: str, prefect_page: str | None, *, named_by: str | None = None) -> list[str]:
    """How to open Prefect's UI and MLflow's, with the commands of this environment, as a shell takes them.

    Args:
        uri: where MLflow keeps its runs; a server's address is shown, a database gets the command for its UI.
        prefect_page: address of a Prefect server that goes on; None after a run that had one of its own.
        named_by: the environment variable that `uri` came from.
    """
    prefect = prefect_page or f"{_command('coppice', 'up')}   # then http://127.0.0.1:4200"
    mlflow = without_password(uri)
    if not mlflow.startswith("http"):
        mlflow = f"{_command('mlflow', 'ui', '--backend-store-uri', mlflow)}   # then http://127.0.0.1:5000"
    elif named_by is not None:
        mlflow = f"{mlflow}   # {named_by}"
    return [f"stages and artifacts:  {prefect}", f"metrics and models:    {mlflow}"]


def place_lines(result: RunResult) -> list[str]:
    """The MLflow run's id, and where the champion's adapter lies; none of a run that was not tracked."""
    if result.tracking_run is None:
        return []
    adapter = champion_folder(result)
    where = "none, the base stayed best" if adapter is None else shlex.quote(str(adapter))
    return [f"MLflow run:            {result.tracking_run}", f"champion's adapter:    {where}"]


def next_lines(result: RunResult, home: Path) -> list[str]:
    """Three commands that make sense now, as a shell takes them; none of a run that was not tracked.

    Args:
        result: of the run that has ended.
        home: ``COPPICE_HOME``, where the run's configuration is kept.
    """
    run = result.tracking_run
    if run is None:
        return []
    config, adapter = config_file(home, run), champion_folder(result)
    measure = ("evaluate", "--config", str(config), *(("--adapter", str(adapter)) if adapter else ()))
    commands = (
        ("runs", "show", run[:SHORT_ID]),
        ("report", "--run", run, "--output", f"report-{run[:SHORT_ID]}.html"),
        measure,
    )
    return ["next:", *(f"  {_command('coppice', *command)}" for command in commands)]


def champion_folder(result: RunResult) -> Path | None:
    """Where the champion's adapter, or its full weights, lie; None where the base stayed best."""
    from tasks.runtime.policies import policy_folder

    champion = next((record for record in result.records if record.index == result.decision.champion), None)
    return None if champion is None else policy_folder(champion.policy)


def _registry_lines(result: RunResult, config: PipelineConfig) -> list[str]:
    """What became of the alias `champion`; none where the run registered no version."""
    if result.promotion is None or result.promotion.version is None:
        return []
    return [f"registry: {promotion_line(result.promotion, model_name(config.preset))}"]


def _cells(row: IterationRow, datasets: Sequence[str]) -> list[str]:
    accuracies = [row.accuracies[name] for name in datasets]
    return [row.name, *accuracies, row.informative_share, row.variance, row.kl, row.tokens, row.seconds, row.decision]


def _command(name: str, *arguments: str) -> str:
    """How to call a program of this environment from the current folder, quoted for a shell."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        return shlex.join([name, *arguments])
    called = str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
    return shlex.join([called, *arguments])
