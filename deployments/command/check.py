"""`coppice check`: the subcommand; deployments/preflight has the checks."""

from __future__ import annotations

import typer

from deployments.command.options import ConfigOption, ModelOption, PresetOption, SetOption, build_config, load_settings


def check(
    preset: PresetOption = None,
    file: ConfigOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
) -> None:
    """Find out what would stop a run, and what the run would cost, before it starts."""
    config = build_config(preset, overrides, model, file)
    settings = load_settings()
    from deployments.command.output.check_lines import print_check_lines
    from deployments.preflight.check import run_checks

    if print_check_lines(run_checks(config, settings)):
        raise typer.Exit(2)
