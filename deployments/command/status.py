"""`coppice status` and `coppice logs`: what goes on in this home, and what was said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deployments.command.options import load_settings

ServerName = Literal["prefect", "mlflow", "worker", "prefect-terminal"]


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Say which servers are up, whether a worker is there, and how far the runs in progress are."""
    settings = load_settings()
    from deployments.command.output.run_tables import print_json
    from deployments.command.output.status_lines import print_status
    from deployments.service.going_on import home_status

    found = home_status(settings)
    if as_json:
        print_json(found.as_json())
    else:
        print_status(found)


def logs(
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="MLflow run id, or its beginning; the latest run if left out."),
    ] = None,
    server: Annotated[ServerName | None, typer.Option(help="What a server or the worker printed, instead.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many lines, the last ones.")] = 50,
) -> None:
    """Print what a run, a server or the worker said, from files below the home."""
    settings = load_settings()
    from pipeline_lib.config import ConfigError

    if server is not None and run_id is not None:
        raise ConfigError("logs: name a run or --server, not both")
    if server is not None:
        file = settings.home.resolve() / "servers" / f"{server}.log"
        starts = "run" if server == "prefect-terminal" else "up"
        missing = f"{server} has printed nothing in this home; `coppice {starts}` starts it"
    else:
        file, missing = _log_of_run(run_id)
    if not file.is_file():
        raise ConfigError(f"logs: {missing} ({file})")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    typer.echo("\n".join(lines))


def _log_of_run(beginning: str | None) -> tuple[Path, str]:
    """A run's file, and what to say where it is not there; the file that was written last where no run is named."""
    from pipeline_lib.config import Settings
    from pipeline_lib.tracking.history.run_folder import log_file

    settings = Settings()
    if beginning is None:
        written = sorted((settings.home.resolve() / "runs").glob("*/run.log"), key=lambda file: file.stat().st_mtime)
        return (written or [settings.home.resolve() / "runs"])[-1], "no run has said anything in this home yet"
    kept = list((settings.home.resolve() / "runs").glob(f"{beginning}*/run.log"))
    if len(kept) == 1:  # no need to ask MLflow, which takes seconds
        return kept[0], ""
    from pipeline_lib.tracking.history.run_list import find_run

    run = find_run(settings, beginning)
    return log_file(
        settings.home, run.run_id
    ), f"nothing of {run.run_id} is kept: it ran elsewhere, or is of version 0.1.0"
