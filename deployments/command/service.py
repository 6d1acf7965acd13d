"""`coppice up`, `down`, `worker` and `alerts`: the subcommands; deployments/service does the work."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from deployments.command.options import PRESET_NAMES, ConfigOption, ModelOption, SetOption, build_config, load_settings

ServedPresetOption = Annotated[
    str,
    typer.Option("--preset", metavar="NAME", help=f"Configuration that the deployments start from: {PRESET_NAMES}."),
]

WorkerNameOption = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Name of the worker in Prefect's UI; the host's name if left out."),
]


def up(
    presets: Annotated[
        list[str],
        typer.Option(
            "--preset",
            metavar="NAME",
            help=f"Configuration of a pair of deployments: {PRESET_NAMES}; repeatable; tiny if left out.",
        ),
    ] = [],  # noqa: B006  typer copies it
    file: ConfigOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
) -> None:
    """Start Prefect's server, MLflow's server and a worker on loopback; settings that changed are registered anew."""
    from deployments.service import servers

    # A bad setting is refused here, where somebody reads it.
    names: list[str | None] = [*presets] or [None]
    configs = [build_config(preset, overrides, model, file) for preset in names]
    ports = servers.up(configs)
    if presets or file or overrides or model:
        from deployments.service.worker import register_changes
        from pipeline_lib.config import Settings

        *_, worker = servers.servers(Settings(), ports)
        for line in register_changes(configs, worker.environment):
            typer.echo(line, err=True)
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
    from deployments.service.worker import become_worker, configs_of_variable, register_deployments

    register_deployments(*(configs_of_variable() or [config]))
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
