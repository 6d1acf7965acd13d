"""`coppice export` and `coppice serve-model`: a trained model leaves the house, or answers on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.command.options import build_config, load_settings
from deployments.command.results.champion import TrainedByOption

if TYPE_CHECKING:
    from pipeline_lib.config import PipelineConfig, Settings
    from pipeline_lib.tracking import Champion


def export(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; a new one.")],
    champion: Annotated[bool, typer.Option("--champion", help="Export the champion of --preset.")] = False,
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="ID", help="Export what this MLflow run chose instead; the id's beginning is enough."
        ),
    ] = None,
    preset: TrainedByOption = "tiny",
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the base with the adapter in its weights, no adapter.")
    ] = False,
    hub_name: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="NAME", help="Upload the folder to OWNER/NAME of the hub, too."),
    ] = None,
) -> None:
    """Write a trained model to a folder that transformers, PEFT and vLLM load, with a card of what it is."""
    from pipeline_lib.config import ConfigError

    if champion == (run_id is not None):
        raise ConfigError("export: name one of --champion and --run ID")
    config = build_config(preset, [])
    settings = load_settings()
    from deployments.export import export_version, push_to_hub, require_hub, require_new

    require_new(output)
    if hub_name is not None:
        require_hub(hub_name)
    chosen, config = _chosen(settings, config, run_id)
    if hub_name is not None and not merge:
        _require_hub_base(chosen, config)
    kind = export_version(settings, chosen, config, output, merge=merge)
    what = {"adapter": "the adapter", "merged": "merged weights", "full": "whole weights"}[kind]
    typer.echo(
        f"wrote {what} of {chosen.model} version {chosen.version} to {output}; README.md there says how to load it"
    )
    if hub_name is not None:
        typer.echo(f"uploaded to {push_to_hub(output, hub_name)}")


def serve_model(
    preset: TrainedByOption = "tiny",
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Serve this exported or other model folder instead.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on loopback.")] = 8000,
) -> None:
    """Serve the champion by vLLM on loopback, as OpenAI's interface, until stopped."""
    config = build_config(preset, [])
    settings = load_settings()
    from deployments.service import model_server

    model_server.require_vllm()
    if model is not None:
        served = model_server.served_folder(model)
    else:
        chosen, config = _chosen(settings, config, None)
        served = model_server.served_version(settings, chosen, config)
    key, where = model_server.serving_key(settings.home, os.environ)
    address = f"http://{model_server.HOST}:{port}/v1"
    typer.echo(f"serving {served.name} at {address} (OpenAI's interface); it loads for a while, Ctrl-C ends it")
    typer.echo(f'ask:  curl {address}/models -H "Authorization: Bearer {where}"')
    sys.stdout.flush()  # the server takes this process's place
    model_server.become_server(served, key, port)


def _chosen(settings: Settings, config: PipelineConfig, run_id: str | None) -> tuple[Champion, PipelineConfig]:
    """The champion of the configuration's preset, or a run's choice; and the configuration that it was made with."""
    from deployments.export import champion_of, choice_of_run, config_of
    from pipeline_lib.tracking.history.run_list import whole_id

    if run_id is None:
        chosen = champion_of(settings, config.preset)
    else:
        chosen = choice_of_run(settings, whole_id(settings, run_id))
    return chosen, config_of(settings, chosen, config)


def _require_hub_base(chosen: Champion, config: PipelineConfig) -> None:
    """Raises ConfigError where an uploaded adapter would name a base that lies on this machine alone."""
    from pipeline_lib.config import ConfigError
    from pipeline_lib.policy.model_folders import model_path

    if not config.train.full_finetuning and isinstance(model_path(chosen.base_model), Path):
        raise ConfigError(
            f"--push-to-hub: the adapter's base, {chosen.base_model}, is a folder of this machine, where nobody else "
            "finds it; add --merge"
        )
