"""What `coppice run --dry-run` prints: a line per stage, and what the run costs."""

from __future__ import annotations

import typer

from deployments.preflight.plan import estimate, plan_run
from pipeline_lib.config import PipelineConfig, Settings


def print_plan(config: PipelineConfig, settings: Settings) -> None:
    """Prints each stage with what the store has of it; nothing is made and no server started."""
    from tasks.runtime.prompts import check_prompts

    check_prompts(config)
    stages = plan_run(config)
    for stage in stages:
        note = f"  ({stage.note})" if stage.note else ""
        verdict = "to do (depends)" if stage.verdict == "depends" else stage.verdict
        typer.echo(f"{verdict:<16}  {stage.label}{note}")
    if all(stage.verdict == "in the store" for stage in stages):
        typer.echo("nothing is left to do")
    else:
        typer.echo(estimate(config, settings))
