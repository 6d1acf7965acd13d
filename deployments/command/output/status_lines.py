"""What `coppice status` prints."""

from __future__ import annotations

import typer

from deployments.service.going_on import HomeStatus, RunStatus


def print_status(found: HomeStatus) -> None:
    """A line per server, then one per run in progress."""
    typer.echo(f"home              {found.home}")
    for server in found.servers:
        typer.echo(f"{server.name:<16}  {server.state}{'' if server.address is None else f'  {server.address}'}")
    for run in found.runs:
        typer.echo(f"run {run.run_id[:8]}      {run.name}: {_words(run)}")
    if not found.runs:
        typer.echo("runs              none in progress")


def _words(run: RunStatus) -> str:
    if run.is_alive is False:
        return f"its process is gone; coppice resume {run.run_id[:8]} goes on with it"
    if run.stage is None:
        return "in progress; no Prefect server that answers here knows its stage"
    return run.stage if run.percent is None else f"{run.stage}, {run.percent:.0f} %"
