"""What several subcommands share: their options, and what they do before the work begins."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from pipeline_lib.config import PipelineConfig, Settings

MAX_HELP = 200  # characters about a subcommand; none has more
OWN_NAMES = ("preset", "seed", "name")  # a run is called by them anyway
# Of deployments/presets.py, which is slow to import.
PRESET_NAMES = "tiny, tiny-literal, smollm2, gsm8k, math, gsm8k-24gb, math-24gb, gsm8k-thinking or math-thinking"

PresetOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help=f"Configuration to start from: {PRESET_NAMES}; tiny, or --config's, if left out."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="YAML file of settings, as coppice config prints them; --set goes on top."
    ),
]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="Change one setting, for example search.c_uct=0.5; repeatable."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(metavar="FOLDER_OR_NAME", help="Model folder or hub name; short for --set policy.model=…."),
]


class GroupInSections(TyperGroup):
    """Lists the subcommands by family, in plain text: what draws boxes takes longer to import than all else."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        families: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            if not command.hidden:
                rows = families.setdefault(str(getattr(command, "rich_help_panel", None) or "Commands"), [])
                rows.append((name, command.get_short_help_str(MAX_HELP)))
        for family, rows in families.items():
            with formatter.section(family):
                formatter.write_dl(rows)


def build_config(
    preset: str | None, overrides: list[str], model: str | None = None, file: Path | None = None
) -> PipelineConfig:
    """The preset with the settings of a file, then every ``--set`` applied, the model last.

    Args:
        preset: name of a preset; None takes the file's, or tiny.
        overrides: ``NAME=VALUE`` each, as ``search.c_uct=0.5``.
        model: model folder or hub name; None keeps the configuration's.
        file: a YAML file of settings; None for none.

    Raises:
        ConfigError: an unknown preset or setting (the nearest one is named), a value out of bounds, or a dataset or
            model that is not there.
    """
    from pipeline_lib.config import apply_overrides
    from pipeline_lib.policy.model_folders import model_path
    from pipeline_lib.problems.run_sets import check_datasets

    config = preset_config(preset or "tiny") if file is None else _config_of_file(file, preset)
    model_override = [] if model is None else [f"policy.model={json.dumps(model)}"]
    config = apply_overrides(config, [*overrides, *model_override])
    check_datasets(config)  # an unknown one is refused
    model_path(config.policy.model)  # a missing folder is refused
    return config


def preset_config(name: str, *, place: str = "--preset") -> PipelineConfig:
    """The configuration of a preset.

    Args:
        name: the preset's.
        place: what named it, for an error.

    Raises:
        ConfigError: there is none of that name; the nearest one is named.
    """
    from deployments import presets
    from pipeline_lib.config import ConfigError

    names = list(presets.preset_names())
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
        raise ConfigError(f"{place} {name}: there is none of that name; the nearest is {nearest!r}")
    return presets.preset(name)


def _config_of_file(path: Path, preset: str | None) -> PipelineConfig:
    """A file's settings over those of a preset: the one that is named, the file's own, or tiny."""
    from pipeline_lib.config import PipelineConfig
    from pipeline_lib.config.yaml_file import read_config_file

    file = read_config_file(path)
    start = preset or str(file.values.get("preset", "tiny"))
    if preset is None and file.is_whole:  # whatever its preset is called, nothing is taken from it
        config = file.apply(PipelineConfig())
    else:
        config = file.apply(preset_config(start, place="--preset" if preset else f"{file.place('preset')}: preset"))
        config = config.model_copy(update={"preset": start})
    is_made_up = config.name == what_differs(config)  # it says what differed then
    return config.model_copy(update={"name": None}) if is_made_up else config


def what_differs(config: PipelineConfig) -> str | None:
    """A run's name that tells it from others of its preset and seed: settings by their last name, 200 characters.

    Example: of the preset tiny with ``seed=1`` and ``train.learning_rate=2e-4`` it is
    ``tiny seed 1 learning_rate=0.0002``; where nothing but the seed differs, None.
    """
    from deployments import presets
    from pipeline_lib.config import PipelineConfig, differing_settings

    known = config.preset in presets.preset_names()
    start = presets.preset(config.preset) if known else PipelineConfig(preset=config.preset)
    changed = {name: value for name, (value, _) in differing_settings(config, start).items()}
    model = changed.pop("policy.model", None)
    words = [] if model is None else [Path(model).name]
    shown = {name: name.rpartition(".")[2] for name in changed if name not in OWN_NAMES}
    last_names = list(shown.values())
    words += [
        f"{last if last_names.count(last) == 1 else name}={as_text(changed[name])}" for name, last in shown.items()
    ]
    return " ".join([config.model_copy(update={"name": None}).label, *words])[:200] if words else None


def as_text(value: object) -> str:
    """A setting's value as a person would type it after ``--set``: texts bare, lists of texts by commas."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
        with FileLock(folder / "prune.lock"):  # a prune that goes on ends first, see `tasks.housekeeping.prune`
            lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError("this very run is going on in another process; wait for it, or end that one first") from None
    note = folder / f"{key}.json"
    try:
        write_json(note, {"pid": os.getpid(), "born": _born(os.getpid())})  # for `coppice status`
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _born(pid: int) -> float:
    """When a process began; it tells it from a later one of the same number."""
    import psutil

    return float(psutil.Process(pid).create_time())


def require_writable(file: Path | None) -> None:
    """Raises ConfigError unless a file can be written there; a run of hours shall not end with that."""
    from pipeline_lib.config import ConfigError

    if file is None:
        return
    is_new = not file.exists()
    try:
        file.open("a").close()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror}); name a file in an existing folder") from None
    if is_new:
        file.unlink()


def load_settings(*, keeps_results: bool = True) -> Settings:
    """Where things live; sets the environment up for Prefect, MLflow and the flows, which are imported after this.

    Args:
        keeps_results: False for a command that leaves nothing in the home.

    Raises:
        ConfigError: nothing can be kept there.
    """
    from deployments.environment import prepare_environment
    from deployments.places import check_places
    from pipeline_lib.config import Settings

    settings = Settings()
    if keeps_results:
        check_places(settings)
    prepare_environment(settings, debug=is_debugging())
    return settings


def write_json(path: Path, value: object) -> None:
    """Writes `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def is_debugging() -> bool:
    """Whether ``COPPICE_DEBUG`` asks for tracebacks."""
    return os.environ.get("COPPICE_DEBUG", "") not in ("", "0")
