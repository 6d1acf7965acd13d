"""`coppice run` and `coppice evaluate`: the whole loop, and the measurement of one policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deployments.command.options import (
    ModelOption,
    PresetOption,
    SetOption,
    build_config,
    load_settings,
    require_writable,
    the_only_one,
    what_differs,
    write_json,
)
from deployments.interrupts import says_how_to_go_on


def run(
    preset: PresetOption = "tiny",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
    name: Annotated[
        str | None, typer.Option(help="What both UIs call the run; preset, seed and changed settings if left out.")
    ] = None,
    summary: Annotated[Path | None, typer.Option(help="Write the results to this file as JSON.")] = None,
) -> None:
    """Run the whole loop and print what every iteration changed."""
    config = build_config(preset, overrides, model)
    config = config.model_copy(update={"name": name or config.name or what_differs(config.label, overrides, model)})
    require_writable(summary)
    settings = load_settings()
    if config.runner == "ray":  # a server of ours is not one that its workers reach
        from tasks.runtime.runner import check_runner

        check_runner(config)
    from deployments.service.terminal_server import prefect_of_run

    with says_how_to_go_on(), prefect_of_run(settings) as prefect:
        from deployments.command.output.closing import print_result
        from deployments.command.output.progress_bar import show_progress
        from deployments.command.output.summary import summary_json
        from flows.self_training import self_training
        from pipeline_lib.tracking import tracking_uri
        from tasks.runtime.flow_tracking import run_key
        from tasks.train import check_training

        check_training(config)
        prefect.wait()
        with the_only_one(settings, run_key(config)), show_progress():
            result = self_training(config)
    if summary is not None:
        write_json(summary, summary_json(result, config))
    print_result(result, config, tracking_uri=tracking_uri(settings), prefect_page=prefect.page())


def evaluate(
    preset: PresetOption = "tiny",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Adapter folder, or models:/coppice-PRESET@champion; the model alone if left out."
        ),
    ] = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Split of each dataset to measure on.")] = "test",
    summary: Annotated[Path | None, typer.Option(help="Write the reports to this file as JSON.")] = None,
) -> None:
    """Measure one policy on every dataset of the configuration."""
    from pipeline_lib.config import ConfigError

    config = build_config(preset, overrides, model)
    if adapter is not None and not adapter.startswith("models:/"):
        if not Path(adapter).is_dir():
            raise ConfigError(f"--adapter {adapter}: no such folder")
        adapter = str(Path(adapter).resolve())
    require_writable(summary)
    settings = load_settings()
    from deployments.service.terminal_server import prefect_of_run

    with says_how_to_go_on(), prefect_of_run(settings) as prefect:
        from deployments.command.output.closing import print_reports
        from deployments.command.output.progress_bar import show_progress
        from flows.evaluate_policy import evaluate_policy

        prefect.wait()
        with show_progress():
            reports = evaluate_policy(config, adapter=adapter, split=split)
    if summary is not None:
        write_json(summary, [report.model_dump(mode="json") for report in reports])
    print_reports(reports)
