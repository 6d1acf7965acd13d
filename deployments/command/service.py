"""`coppice up`, `down`, `worker` and `alerts`: the subcommands; deployments/service does the work."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deployments.command.options import PRESET_NAMES, SetOption, build_config, load_settings

ServedPresetOption = Annotated[
    str, typer.Option("--preset", help=f"Configuration that the deployments start from: {PRESET_NAMES}.")
]

WorkerNameOption = Annotated[
    str | None, typer.Option(help="Name of the worker in Prefect's UI; the host's name if left out.")
]


def up(preset: ServedPresetOption = "tiny", overrides: SetOption = []) -> None:  # noqa: B006  typer copies it
    """Start Prefect's server, MLflow's server and a worker on loopback."""
    from deployments.service import servers

    build_config(preset, overrides)  # a bad setting is refused here, where somebody reads it
    arguments = [argument for override in overrides for argument in ("--set", override)]
    ports = servers.up(("--preset", preset, *arguments))
    typer.echo(f"stages, runs, schedules:  {ports.prefect_url}")
    typer.echo(f"metrics and models:       {ports.mlflow_url}")
    typer.echo(
        f"runs from a terminal:     PREFECT_API_URL={ports.prefect_url}/api COPPICE_TRACKING_URI={ports.mlflow_url}"
    )


def down() -> None:
    """Stop what `coppice up` started."""
    from deployments.service import servers

    stopped = servers.down()
    typer.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def worker(
    preset: ServedPresetOption = "tiny",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    name: WorkerNameOption = None,
) -> None:
    """Register the deployments and work on their runs, one at a time, until stopped."""
    from pipeline_lib.config import Settings

    config = build_config(preset, overrides)
    os.environ["COPPICE_HOME"] = str(Settings().home.resolve())  # runs start in another folder
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "NOTSET")  # there is no progress bar to disturb
    load_settings()
    from deployments.service.worker import become_worker, register_deployments

    register_deployments(config)
    become_worker(name)


def serve(
    preset: ServedPresetOption = "tiny",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    name: WorkerNameOption = None,
) -> None:
    """Do what `coppice worker` does; the name until 0.1.0, gone with the next version."""
    typer.echo("coppice: `serve` is called `worker` now; the old name goes with the next version", err=True)
    worker(preset, overrides, name)


def alerts(
    block: Annotated[
        str,
        typer.Argument(metavar="TYPE/NAME", help="Notification block on the server, for example slack-webhook/team."),
    ],
) -> None:
    """Notify of a failed run, an audit that stopped one, and a new champion."""
    load_settings()
    from deployments.service.alerts import install_alerts
    from deployments.service.worker import require_server

    require_server("alerts")
    for name in install_alerts(block):
        typer.echo(f"{name}: notifies {block}")
