"""`coppice config`: the settings that a run would have, as a file that ``--config`` reads."""

from __future__ import annotations

from typing import Annotated

import typer

from deployments.command.options import ConfigOption, ModelOption, PresetOption, SetOption, build_config


def config(
    preset: PresetOption = None,
    file: ConfigOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Put each setting's description above it, as a comment.")
    ] = False,
) -> None:
    """Print every setting of a run as YAML, for --config."""
    from pipeline_lib.config.yaml_file import config_yaml

    typer.echo(config_yaml(build_config(preset, overrides, model, file), describe=describe), nl=False)
