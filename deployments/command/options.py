"""What several subcommands share: their options, and what they do before the work begins."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline_lib.config import PipelineConfig, Settings

# Of deployments/presets.py, which is slow to import.
PRESET_NAMES = "tiny, tiny-literal, smollm2, gsm8k, math, gsm8k-24gb or math-24gb"

PresetOption = Annotated[str, typer.Option(help=f"Configuration to start from: {PRESET_NAMES}.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="Change one setting, for example search.c_uct=0.5; repeatable."),
]
ModelOption = Annotated[str | None, typer.Option(help="Model folder or hub name; short for --set policy.model=….")]


def build_config(preset: str, overrides: list[str], model: str | None = None) -> PipelineConfig:
    """The preset with every ``--set`` applied, the model last.

    Args:
        preset: name of a preset.
        overrides: ``NAME=VALUE`` each, as ``search.c_uct=0.5``.
        model: model folder or hub name; None keeps the configuration's.

    Raises:
        ConfigError: an unknown preset or setting (the nearest one is named), or a value out of bounds.
    """
    from deployments import presets
    from pipeline_lib.config import ConfigError, apply_overrides
    from pipeline_lib.policy.model_folders import model_path
    from pipeline_lib.problems.run_sets import check_datasets

    names = list(presets.preset_names())
    if preset not in names:
        nearest = difflib.get_close_matches(preset, names, n=1, cutoff=0.0)[0]
        raise ConfigError(f"--preset {preset}: there is none of that name; the nearest is {nearest!r}")
    model_override = [] if model is None else [f"policy.model={json.dumps(model)}"]
    config = apply_overrides(presets.preset(preset), [*overrides, *model_override])
    check_datasets(config)  # an unknown one is refused
    model_path(config.policy.model)  # a missing folder is refused
    return config


def what_differs(label: str, overrides: list[str], model: str | None = None) -> str | None:
    """A run's name that tells it from others of its preset and seed: settings by their last name, 200 characters.

    Example: ``what_differs("tiny seed 1", ["seed=1", "train.learning_rate=2e-4"]) == "tiny seed 1 learning_rate=2e-4"``
    """
    changed = [override.partition("=") for override in overrides if override.partition("=")[0] not in ("seed", "name")]
    models = [] if model is None else [Path(model).name]
    words = models + [f"{name.rpartition('.')[2]}={value}" for name, _, value in changed]
    return " ".join([label, *words])[:200] if words else None


@contextmanager
def the_only_one(settings: Settings, key: str) -> Iterator[None]:
    """Refuses a run that is going on already in this home; others of the same stages wait for each other.

    Args:
        settings: where the home is.
        key: names the run, see `tasks.runtime.flow_tracking.run_key`.

    Raises:
        ConfigError: the same command is at work.
    """
    from filelock import FileLock, Timeout

    from pipeline_lib.config import ConfigError

    folder = settings.home.resolve() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError("this very run is going on in another process; wait for it, or end that one first") from None
    try:
        yield
    finally:
        lock.release()


def require_writable(file: Path | None) -> None:
    """Raises ConfigError unless a file can be written there; a run of hours shall not end with that."""
    from pipeline_lib.config import ConfigError

    if file is not None and (file.is_dir() or not file.resolve().parent.is_dir()):
        raise ConfigError(f"{file}: cannot be written; name a file in an existing folder")


def load_settings() -> Settings:
    """Where things live; sets the environment up for Prefect, MLflow and the flows, which are imported after this."""
    from deployments.environment import prepare_environment
    from pipeline_lib.config import Settings

    settings = Settings()
    prepare_environment(settings, debug=is_debugging())
    return settings


def write_json(path: Path, value: object) -> None:
    """Writes `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def is_debugging() -> bool:
    """Whether ``COPPICE_DEBUG`` asks for tracebacks."""
    return os.environ.get("COPPICE_DEBUG", "") not in ("", "0")
