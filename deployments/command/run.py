"""`coppice run`, `evaluate`, `report` and `build-base`: the flows, and what is left of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments.command.options import ModelOption, PresetOption, SetOption, build_config, prepare, write_json


def add_to(app: typer.Typer) -> None:
    """Adds the subcommands to the command."""
    for command in (run, evaluate, report, build_base):
        app.command()(command)


def run(
    preset: PresetOption = "tiny",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
    summary: Annotated[Path | None, typer.Option(help="Write the results to this file as JSON.")] = None,
) -> None:
    """Run the whole loop and print what every iteration changed."""
    config = build_config(preset, overrides, model)
    settings = prepare(summary)
    from deployments.command import output as terminal
    from flows.self_training import self_training
    from pipeline_lib.tracking import tracking_uri
    from tasks.runtime.runner import check_runner
    from tasks.train import check_training

    check_runner(config)
    check_training(config)

    with terminal.show_progress():
        result = self_training(config)
    if summary is not None:
        write_json(summary, terminal.summary_json(result, config))
    terminal.print_result(result, config, tracking_uri=tracking_uri(settings))


def evaluate(
    preset: PresetOption = "tiny",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder; without it the model alone.")] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    summary: Annotated[Path | None, typer.Option(help="Write the reports to this file as JSON.")] = None,
) -> None:
    """Measure one policy on every dataset of the configuration."""
    from pipeline_lib.config import ConfigError

    config = build_config(preset, overrides, model)
    if split not in ("validation", "test"):
        raise ConfigError(f"--split {split}: expected validation or test")
    if adapter is not None and not adapter.is_dir():
        raise ConfigError(f"--adapter {adapter}: no such folder")
    prepare(summary)
    from deployments.command import output as terminal
    from flows.evaluate_policy import evaluate_policy

    with terminal.show_progress():
        reports = evaluate_policy(config, adapter_dir=adapter and str(adapter.resolve()), split=split)
    if summary is not None:
        write_json(summary, [report.model_dump(mode="json") for report in reports])
    terminal.print_reports(reports)


def report(
    run_id: Annotated[
        str | None, typer.Option("--run", help="MLflow run id; the latest finished run if left out.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about a finished run."""
    settings = prepare(output)
    from pipeline_lib.tracking import load_run
    from tasks.reporting.gather import load_material, render_report

    config, result = load_run(settings, run_id)
    output.write_text(render_report(config, result, load_material(settings, result)), encoding="utf-8")
    typer.echo(f"wrote {output}")


def build_base(
    output: Annotated[Path, typer.Option(help="Becomes the model folder.")] = Path("tiny-base"),
    scale: Annotated[int, typer.Option(min=1, help="Size of model and numbers; 1 is the base that comes along.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and corpus.")] = 0,
    num_threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
) -> None:
    """Pretrain a tiny base: the policy that the tiny world starts from."""
    prepare(None)
    from deployments.command import output as terminal
    from flows.build_base import build_base as flow
    from pipeline_lib.config import ConfigError

    if any(path.exists() and not path.is_dir() for path in (output, *output.resolve().parents)):
        raise ConfigError(f"{output}: cannot be written; name a folder, or one that can be made")

    with terminal.show_progress():
        accuracies = flow(output.resolve(), scale=scale, seed=seed, num_threads=num_threads)
    for dataset, accuracy in accuracies.items():
        typer.echo(f"{dataset} {accuracy:.1%} greedy on validation")
