"""The part of the `coppice` command that keeps it running: servers, deployments, alerts.

Like all of the command it starts at once: each subcommand imports what it needs.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deployments.command.options import ModelOption, SetOption, build_config

PresetOption = Annotated[str, typer.Option(help="Named configuration that the deployments start from.")]


def add_to(app: typer.Typer) -> None:
    """Adds the subcommands to the command."""
    for command in (check, up, down, serve, alerts):
        app.command()(command)


def check(
    preset: Annotated[str, typer.Option(help="Named configuration to start from.")] = "tiny",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
) -> None:
    """Find out what a run would stumble over, and what it would cost, before it starts."""
    from deployments.environment import prepare_environment
    from pipeline_lib.config import Settings

    config, settings = build_config(preset, overrides, model), Settings()
    prepare_environment(settings)
    from deployments.command.output import print_answers
    from deployments.preflight.check import check as ask

    if print_answers(ask(config, settings)):
        raise typer.Exit(2)


def up(preset: PresetOption = "tiny", overrides: SetOption = []) -> None:  # noqa: B006  typer copies it
    """Start Prefect's server, MLflow's server and a worker on loopback."""
    from deployments.service.servers import up as start

    build_config(preset, overrides)
    arguments = [argument for override in overrides for argument in ("--set", override)]
    ports = start(("--preset", preset, *arguments))
    typer.echo(f"stages, runs, schedules:  {ports.prefect_url}")
    typer.echo(f"metrics and models:       {ports.mlflow_url}")
    typer.echo(
        f"runs from a terminal:     PREFECT_API_URL={ports.prefect_url}/api COPPICE_TRACKING_URI={ports.mlflow_url}"
    )


def down() -> None:
    """Stop what `coppice up` started."""
    from deployments.service.servers import down as stop

    stopped = stop()
    typer.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


def serve(
    preset: PresetOption = "tiny",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    name: Annotated[str | None, typer.Option(help="The worker's, in the UI; the host's if left out.")] = None,
) -> None:
    """Register the deployments and work on their runs, one at a time, until stopped."""
    from deployments.environment import prepare_environment
    from pipeline_lib.config import Settings

    config = build_config(preset, overrides)
    settings = Settings()
    os.environ["COPPICE_HOME"] = str(settings.home.resolve())  # runs start elsewhere
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "NOTSET")  # there is no progress bar to disturb
    prepare_environment(settings)
    from deployments.service.worker import register, work

    register(config)
    work(name)


def alerts(
    block: Annotated[str, typer.Argument(metavar="TYPE/NAME", help="Notification block, as slack-webhook/team.")],
) -> None:
    """Notify of a failed run, an audit that stopped one, and a new champion."""
    from deployments.environment import prepare_environment
    from pipeline_lib.config import Settings

    prepare_environment(Settings())
    from deployments.service.alerts import install
    from deployments.service.worker import require_server

    require_server("alerts")
    for name in install(block):
        typer.echo(f"{name}: notifies {block}")
