"""`coppice build-base`: pretrains a small base model, such as the one that the preset `tiny` starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments.command.options import load_settings
from deployments.interrupts import says_how_to_go_on


def build_base(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Becomes the model folder.")] = Path("tiny-base"),
    scale: Annotated[
        int, typer.Option(min=1, help="Size of the model and of the numbers it calculates with; 1 is the shipped base.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights and the corpus.")] = 0,
    num_threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
) -> None:
    """Pretrain a small base model, such as the one that the preset `tiny` starts from."""
    from pipeline_lib.config import ConfigError

    if any(path.exists() and not path.is_dir() for path in (output, *output.resolve().parents)):
        raise ConfigError(f"{output}: cannot be written; name a folder, or one that can be made")
    from deployments.service.terminal_server import prefect_of_run

    with says_how_to_go_on(), prefect_of_run(load_settings()) as prefect:
        from deployments.command.output.progress_bar import show_progress
        from flows.build_base import build_base as build_base_flow

        prefect.wait()
        with show_progress():
            accuracies = build_base_flow(output.resolve(), scale=scale, seed=seed, num_threads=num_threads)
    for dataset, accuracy in accuracies.items():
        typer.echo(f"{dataset} {accuracy:.1%} greedy on validation")
