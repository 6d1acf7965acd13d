"""What `coppice runs` prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich import filesize
from rich.console import Console
from rich.table import Table

from deployments import presets
from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.report.metrics import flatten
from pipeline_lib.tracking.history.run_folder import config_file, log_file
from pipeline_lib.tracking.history.run_list import IterationRun, RunDetails, RunSummary
from tasks.runtime.progress_lines import duration

SHORT = 8  # characters of an id that a list shows
WIDTH_OF_A_PIPE = 160
VALIDATION = re.compile(r"validation/[^/]+/accuracy")


def print_json(value: object) -> None:
    """Prints a value as indented JSON."""
    typer.echo(json.dumps(value, indent=2))


def runs_json(runs: Sequence[RunSummary], usage: Mapping[str, int]) -> list[dict[str, Any]]:
    """A list's rows; `usage` has the bytes of each run by its id."""
    return [run.model_dump(mode="json") | {"disk_bytes": usage.get(run.run_id, 0)} for run in runs]


def print_runs(runs: Sequence[RunSummary], usage: Mapping[str, int]) -> None:
    """Prints one row per run; `usage` has the bytes of each by its id."""
    if not runs:
        typer.echo("no runs yet; `coppice run` makes one")
        return
    datasets = list(dict.fromkeys(name for run in runs for name in run.accuracies))
    table = Table("id", "name", "preset", "state", "started", "took", "iterations", "champion")
    for name in datasets:
        table.add_column(f"{name} (%)", justify="right")
    table.add_column("disk", justify="right")
    for run in runs:
        accuracies = [percent(run.accuracies.get(name)) for name in datasets]
        disk = filesize.decimal(usage.get(run.run_id, 0))
        table.add_row(
            run.run_id[:SHORT], run.name, run.preset, run.state, *_times(run), *_counts(run), *accuracies, disk
        )
    console().print(table)


def changed_settings(run: RunDetails) -> dict[str, tuple[str, str]]:
    """(its value, the preset's) of each setting in which a run differs from its preset, as MLflow has them: as text."""
    known = run.preset in presets.preset_names()
    start = flatten(presets.preset(run.preset) if known else PipelineConfig(preset=run.preset))
    return {
        name: (value, start[name])
        for name, value in run.params.items()
        if name in start and value != start[name] and name != "name"
    }


def paths_of(run: RunDetails, settings: Settings) -> dict[str, str]:
    """Where a run's files lie, as far as they are there."""
    home = settings.home.resolve()
    kept = {"config": config_file(home, run.run_id), "log": log_file(home, run.run_id)}
    there = {name: str(path) for name, path in kept.items() if path.is_file()}
    return {"store": settings.store_uri, "artifacts": run.artifacts, **there}


def details_json(run: RunDetails, settings: Settings) -> dict[str, Any]:
    """All that `print_details` prints, and every setting and metric."""
    differs = {name: {"run": mine, "preset": its} for name, (mine, its) in changed_settings(run).items()}
    return run.model_dump(mode="json") | {"differs_from_preset": differs, "paths": paths_of(run, settings)}


def print_details(run: RunDetails, settings: Settings) -> None:
    """Prints what is known of a run, from its name down to its stages."""
    started, took = _times(run)
    lines = {"run": run.run_id, "name": run.name, "state": f"{run.state}, started {started}, took {took}"}
    lines |= {"run key": run.run_key} | ({"flow run": run.flow_run_id} if run.flow_run_id else {})
    if run.champion is not None:
        lines["champion"] = f"{_iteration_name(run.champion)} ({run.tags.get('coppice.gate', 'no reason on record')})"
    if run.stopped_because:
        lines["stopped because"] = run.stopped_because
    if "coppice.error" in run.tags:
        lines["error"] = run.tags["coppice.error"]
    _print_pairs(lines | paths_of(run, settings))
    changed = changed_settings(run)
    typer.echo(f"\nsettings that differ from the preset {run.preset}: {'' if changed else 'none'}")
    _print_pairs({f"  {name}": f"{mine}  (preset: {its})" for name, (mine, its) in changed.items()})
    typer.echo("")
    out = console()
    out.print(_iterations_table(run.iteration_runs))
    out.print(_stages_table(run.iteration_runs))


def difference_json(first: RunDetails, second: RunDetails) -> dict[str, Any]:
    """Settings that differ and the champions' metrics, each as [first, second]; null where one has none."""
    names = sorted({*first.metrics, *second.metrics})
    return {
        "runs": [first.run_id, second.run_id],
        "champions": [first.champion, second.champion],
        "settings": {name: list(values) for name, values in _differing(first, second).items()},
        "metrics": {name: [first.metrics.get(name), second.metrics.get(name)] for name in names},
    }


def print_difference(first: RunDetails, second: RunDetails) -> None:
    """Prints the settings that differ, then the metrics side by side."""
    heads = [f"{run.run_id[:SHORT]} {run.name}" for run in (first, second)]
    differing = _differing(first, second)
    settings = Table("setting", *heads, title="settings that differ", title_justify="left")
    for name, values in differing.items():
        settings.add_row(name, *("–" if value is None else value for value in values))
    out = console()
    out.print(settings if differing else "no setting differs")
    metrics = Table("metric", title="metrics of the champions", title_justify="left")
    for head in (*heads, "difference"):
        metrics.add_column(head, justify="right")
    for name, (mine, its) in difference_json(first, second)["metrics"].items():
        change = "–" if mine is None or its is None else figure(its - mine, sign="+")
        metrics.add_row(name, *("–" if value is None else figure(value) for value in (mine, its)), change)
    out.print(metrics)


def console() -> Console:
    """Standard output; as wide as tables need where nobody's window is."""
    out = Console()
    if not out.is_terminal:
        out.width = WIDTH_OF_A_PIPE
    return out


def figure(value: float, *, sign: str = "") -> str:
    """A metric in four digits, a large one in whole numbers.

    Args:
        value: the metric.
        sign: ``+`` puts one before positive numbers, too.

    Example: ``figure(16240.0) == "16,240"``, ``figure(0.58333) == "0.5833"``
    """
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.4g}"


def percent(share: float | None) -> str:
    """A share in [0, 1] in per cent, one digit after the point."""
    return "–" if share is None else f"{100 * share:.1f}"


def _differing(first: RunDetails, second: RunDetails) -> dict[str, tuple[str | None, str | None]]:
    names = dict.fromkeys((*first.params, *second.params))
    both = {name: (first.params.get(name), second.params.get(name)) for name in names}
    return {name: values for name, values in both.items() if values[0] != values[1] and name != "name"}


def _times(run: RunSummary) -> tuple[str, str]:
    started = datetime.fromtimestamp(run.started_ms / 1000)
    ended = datetime.now() if run.ended_ms is None else datetime.fromtimestamp(run.ended_ms / 1000)
    return f"{started:%Y-%m-%d %H:%M}", duration((ended - started).total_seconds())


def _counts(run: RunSummary) -> tuple[str, str]:
    if run.kind != "run":
        return run.kind, "–"
    return str(run.iterations), "–" if run.champion is None else _iteration_name(run.champion)


def _iteration_name(index: int) -> str:
    return "the base" if index == 0 else f"iteration {index}"


def _iterations_table(iterations: Sequence[IterationRun]) -> Table:
    datasets = list(dict.fromkeys(name for iteration in iterations for name in iteration.accuracies))
    table = Table("iteration", "state", title="accuracy in %", title_justify="left")
    for name in (*datasets, "validation", "version"):
        table.add_column(name, justify="right")
    table.add_column("policy")
    table.add_column("MLflow run")
    for run in iterations:
        held_out = next((value for name, value in run.metrics.items() if VALIDATION.fullmatch(name)), None)
        accuracies = (percent(run.accuracies.get(name)) for name in datasets)
        ids = (run.version or "–", run.policy_id or "–", run.run_id)
        table.add_row(_iteration_name(run.index), run.state, *accuracies, percent(held_out), *ids)
    return table


def _stages_table(iterations: Sequence[IterationRun]) -> Table:
    table = Table("iteration", "stage", "rows", title="stages, as they lie in the store", title_justify="left")
    table.add_column("entry", overflow="fold")
    for run in iterations:
        for entry in run.stages:
            place = "/".join(Path(entry.uri).parts[-2:])
            table.add_row(_iteration_name(run.index), entry.stage, str(entry.num_rows), place)
    return table


def _print_pairs(pairs: Mapping[str, str]) -> None:
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        typer.echo(f"{name:<{width}}  {value}")
