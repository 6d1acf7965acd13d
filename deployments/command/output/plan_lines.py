"""What `coppice run --dry-run` prints: a line per stage, and what the run costs."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from deployments.preflight.plan import estimate, plan_run
from pipeline_lib.config import PipelineConfig, Settings


def print_plan(config: PipelineConfig, settings: Settings, refresh: Sequence[str] = ()) -> None:
    """Prints each stage with what the store has of it; nothing is made and no server started.

    Args:
        config: of the run.
        settings: where the store is.
        refresh: what ``--refresh`` names.
    """
    from deployments.command.refresh import refreshed_stages
    from tasks.runtime.prompts import check_prompts

    refreshed = refreshed_stages(config, settings, refresh)
    check_prompts(config)
    stages = plan_run(config, refreshed)
    for stage in stages:
        note = f"  ({stage.note})" if stage.note else ""
        verdict = "to do (depends)" if stage.verdict == "depends" else stage.verdict
        typer.echo(f"{verdict:<16}  {stage.label}{note}")
    if all(stage.verdict == "in the store" for stage in stages):
        typer.echo("nothing is left to do")
    else:
        typer.echo(estimate(config, settings))
