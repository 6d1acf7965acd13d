"""The configuration that an earlier run began with, for `coppice resume`."""

from __future__ import annotations

import typer

from pipeline_lib.config import ConfigError, PipelineConfig, Settings


def config_to_resume(settings: Settings, beginning: str) -> PipelineConfig:
    """The very configuration of a run from a terminal; says so where it will go on as another MLflow run.

    Args:
        settings: where home and tracking server are.
        beginning: of the run's id.

    Raises:
        TrackingError: no run, or several, have such an id.
        ConfigError: it is not a run from a terminal, or what it began with is not on record.
    """
    from pipeline_lib.tracking.history.run_list import find_run
    from tasks.runtime.flow_tracking import run_key

    run = find_run(settings, beginning)
    if run.kind != "run":
        raise ConfigError(f"resume: {run.run_id} is an evaluation; give `coppice evaluate` again")
    if run.run_key == run.flow_run_id:
        raise ConfigError(f"resume: {run.run_id} is a run of a deployment; press Retry in Prefect's UI")
    config = recorded_config(settings, run.run_id)
    if run_key(config) != run.run_key:
        typer.echo("coppice: code or base are not those that it began with: it goes on as another MLflow run", err=True)
    return config


def recorded_config(settings: Settings, run_id: str) -> PipelineConfig:
    """What a run was told, from the file below the home, the one in MLflow, or its result.

    Raises:
        ConfigError: it is of version 0.1.0 and has not finished.
    """
    from deployments.command.options import preset_config
    from pipeline_lib.config.yaml_file import read_config_file
    from pipeline_lib.tracking import TrackingError, load_run, load_text
    from pipeline_lib.tracking.history.run_folder import CONFIG_FILE, config_file

    file = config_file(settings.home, run_id)
    if not file.is_file():
        text = load_text(settings, run_id, CONFIG_FILE)
        if text is None:
            try:
                return load_run(settings, run_id)[0]
            except TrackingError as error:
                raise ConfigError(f"resume: {error}; give its command again") from None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    kept = read_config_file(file)
    # A setting that is younger than the file has the preset's value, as it would have in a command.
    return kept.apply(PipelineConfig() if kept.is_whole else preset_config(str(kept.values.get("preset", "tiny"))))
