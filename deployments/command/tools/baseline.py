"""`coppice baseline`: what another project's trainer makes of a run's base and problems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


def baseline(
    tokens: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Tokens to generate for each adapter, of which there are num_iterations."
        ),
    ],
    preset: PresetOption = None,
    file: ConfigOption = None,
    overrides: SetOption = [],  # noqa: B006  typer copies it
    model: ModelOption = None,
    grpo: Annotated[
        list[str],
        typer.Option("--grpo", metavar="NAME=VALUE", help="Change one of GRPO's settings: beta=0.04; repeatable."),
    ] = [],  # noqa: B006  typer copies it
    summary: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the results to this file as JSON.")
    ] = None,
) -> None:
    """Train by TRL's GRPO instead, on a run's base, problems, grader and tokens, and measure it as a run is."""
    from pipeline_lib.config import apply_overrides
    from pipeline_lib.training.outside.grpo_config import GrpoConfig

    config = build_config(preset, overrides, model, file)
    config = config.model_copy(update={"name": config.name or what_differs(config)})
    settings_of_grpo = apply_overrides(GrpoConfig(), grpo, option="--grpo", example="learning_rate=1e-4")
    require_writable(summary)
    settings = load_settings()
    from deployments.service.terminal_server import prefect_of_run
    from tasks.outside.grpo import check_grpo

    check_grpo(config)
    with says_how_to_go_on(), prefect_of_run(settings) as prefect:
        from deployments.command.output.closing import print_baseline
        from deployments.command.output.progress_bar import show_progress
        from deployments.command.output.summary import summary_json
        from flows.grpo_baseline import grpo_baseline
        from tasks.outside.baseline import baseline_key
        from tasks.runtime.prompts import check_prompts

        check_prompts(config)  # a dataset that is not there leaves no failed run behind
        prefect.wait()
        with the_only_one(settings, baseline_key(config, settings_of_grpo, tokens)), show_progress():
            result = grpo_baseline(config, settings_of_grpo, tokens)
    if summary is not None:
        written = summary_json(result, config, settings)
        written["run"] |= {"config": None, "log": None}  # a run of the loop keeps both
        write_json(summary, written)
    print_baseline(result)
