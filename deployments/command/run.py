"""`coppice run`, `resume` and `evaluate`: the whole loop, and the measurement of one policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from deployments.command.options import (
    ConfigOption,
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

if TYPE_CHECKING:
    from pipeline_lib.config import PipelineConfig, Settings
    from pipeline_lib.types import RunResult

NOTHING_TO_DO = (
    "nothing is left to do: the store has every stage of this run; --refresh STAGE makes one again "
    "(problems, search, score, audit, train or evaluate)"
)
SummaryOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results to this file as JSON.")]


def run(
    preset: PresetOption = None,
    file: ConfigOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What both UIs call the run; preset, seed and changed settings if left out."),
    ] = None,
    summary: SummaryOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say of each stage whether the store has it; make and start nothing.")
    ] = False,
    refresh: Annotated[
        list[str],
        typer.Option(
            metavar="STAGE",
            help="Make again, though the store has it: problems, search, score, audit, train or evaluate; repeatable.",
        ),
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Run the whole loop and print what every iteration changed."""
    config = build_config(preset, overrides, model, file)
    config = config.model_copy(update={"name": name or config.name or what_differs(config)})
    require_writable(summary)
    settings = load_settings()
    if dry_run:
        from deployments.command.output.plan_lines import print_plan

        print_plan(config, settings, refresh)
    else:
        _run(config, settings, summary, refresh)


def resume(
    run_id: Annotated[
        str, typer.Argument(metavar="ID", help="MLflow run id, or as much of its beginning as tells it from others.")
    ],
    summary: SummaryOption = None,
) -> None:
    """Go on with a run that was interrupted or failed, by the settings that it began with."""
    require_writable(summary)
    settings = load_settings()
    from deployments.command.resumed import config_to_resume

    _run(config_to_resume(settings, run_id), settings, summary)


def _run(config: PipelineConfig, settings: Settings, summary: Path | None, refresh: list[str] | None = None) -> None:
    """Finds the run in the store, or runs the flow with a server of its own where none is named; prints the results."""
    if config.runner == "ray":  # a server of ours is not one that its workers reach
        from tasks.runtime.runner import check_runner

        check_runner(config)
    with says_how_to_go_on():
        known = None if refresh else _known_result(config, settings)
        if known is not None:
            typer.echo(NOTHING_TO_DO)
            _tell(known, config, settings, summary)
        else:
            _run_flow(config, settings, summary, refresh or [])


def _known_result(config: PipelineConfig, settings: Settings) -> RunResult | None:
    """What the run came to, where nothing of it is left to do; a server that the user names hears of every run."""
    from deployments.service.terminal_server import is_named

    if config.runner != "local" or is_named():
        return None
    from deployments.preflight.finished import finished_run

    return finished_run(config, settings)


def _run_flow(config: PipelineConfig, settings: Settings, summary: Path | None, refresh: list[str]) -> None:
    from deployments.service.terminal_server import prefect_of_run

    with prefect_of_run(settings) as prefect:
        from deployments.command.output.progress_bar import show_progress
        from deployments.command.refresh import refresh_of
        from flows.self_training import self_training
        from tasks.runtime.flow_tracking import run_key
        from tasks.runtime.prompts import check_prompts
        from tasks.runtime.stage import refreshing
        from tasks.train import check_training

        check_training(config)
        check_prompts(config)  # a dataset that is not there leaves no failed run behind
        again = refresh_of(config, settings, refresh)
        if again is not None:
            config = config.model_copy(update={"name": f"{config.label}, again {' '.join(refresh)}"[:200]})
        prefect.wait()
        with refreshing(again), the_only_one(settings, run_key(config)), show_progress():
            result = self_training(config)
        page = prefect.page()
    _tell(result, config, settings, summary, page)


def _tell(
    result: RunResult, config: PipelineConfig, settings: Settings, summary: Path | None, page: str | None = None
) -> None:
    """Writes what ``--summary`` asks for, and prints the tables; `page` is that of a Prefect server that goes on."""
    from deployments.command.output.closing import print_result
    from deployments.command.output.summary import summary_json

    if summary is not None:
        write_json(summary, summary_json(result, config, settings))
    print_result(result, config, settings=settings, prefect_page=page)


def evaluate(
    preset: PresetOption = None,
    file: ConfigOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_VERSION",
            help="Adapter folder, or models:/coppice-PRESET@champion; the model alone if left out.",
        ),
    ] = None,
    split: Annotated[Literal["validation", "test"], typer.Option(help="Split of each dataset to measure on.")] = "test",
    summary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the reports to this file as JSON.")
    ] = None,
) -> None:
    """Measure one policy on every dataset of the configuration."""
    from pipeline_lib.config import ConfigError

    config = build_config(preset, overrides, model, file)
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
        from tasks.runtime.prompts import check_prompts

        check_prompts(config, [split])  # a dataset that is not there leaves no failed run behind
        prefect.wait()
        with show_progress():
            reports = evaluate_policy(config, adapter=adapter, split=split)
    if summary is not None:
        write_json(summary, [report.model_dump(mode="json") for report in reports])
    print_reports(reports)
