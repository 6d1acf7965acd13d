"""What several subcommands share: their options, and what they do before the work begins."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline_lib.config import PipelineConfig, Settings

PresetOption = Annotated[str, typer.Option(help="Named configuration to start from.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="NAME=VALUE", help="Change one setting, as search.c_uct=0.5; repeatable.")
]
ModelOption = Annotated[str | None, typer.Option(help="Model folder or hub name; short for --set policy.model=….")]


def build_config(preset: str, overrides: list[str], model: str | None = None) -> PipelineConfig:
    """The preset with every ``--set`` applied, the model last.

    Raises:
        ConfigError: an unknown preset or setting (the nearest one is named), or a value out of bounds.
    """
    from deployments import presets
    from pipeline_lib.config import ConfigError, apply_overrides
    from pipeline_lib.policy.model_folders import model_path
    from pipeline_lib.problems.formats import format_of

    names = list(presets.preset_names())
    if preset not in names:
        nearest = difflib.get_close_matches(preset, names, n=1, cutoff=0.0)[0]
        raise ConfigError(f"--preset {preset}: there is none of that name; the nearest is {nearest!r}")
    chosen = [] if model is None else [f"policy.model={json.dumps(model)}"]
    config = apply_overrides(presets.preset(preset), [*overrides, *chosen])
    for dataset in (config.problems.dataset, *(name.partition("=")[0] for name in config.evaluation.datasets)):
        format_of(dataset)
    model_path(config.policy.model)
    return config


def prepare(output: Path | None) -> Settings:
    """Sets the environment up for what is imported next; refuses an output that could not be written at the end."""
    from deployments.environment import prepare_environment
    from pipeline_lib.config import ConfigError, Settings

    # A run takes minutes: what it shall be written to is checked before, not after.
    if output is not None and (output.is_dir() or not output.resolve().parent.is_dir()):
        raise ConfigError(f"{output}: cannot be written; name a file in an existing folder")
    settings = Settings()
    prepare_environment(settings, debug=is_debugging())
    return settings


def write_json(path: Path, value: object) -> None:
    """Writes what ``--summary`` asks for."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def is_debugging() -> bool:
    """Whether ``COPPICE_DEBUG`` asks for tracebacks."""
    return os.environ.get("COPPICE_DEBUG", "") not in ("", "0")
