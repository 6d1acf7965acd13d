"""`coppice grade`: the subcommand; `grade_file` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments.command.options import SetOption, prepare


def add_to(app: typer.Typer) -> None:
    """Adds the subcommand to the command."""
    app.command()(grade)


def grade(
    input_file: Annotated[
        Path, typer.Option("--input", metavar="FILE", help="JSONL with the texts `gold` and `prediction` in every row.")
    ],
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Gets the same rows with `grade` and `answer`, replaced if present.")
    ],
    grader: Annotated[str, typer.Option(help="math, or your own my_package.my_module:verify.")] = "math",
    dataset: Annotated[str, typer.Option(help="Whose conventions hold: gsm8k, math, file, ...")] = "math",
    overrides: SetOption = [],  # noqa: B006  typer copies it
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; half of the cores if left out.")] = None,
) -> None:
    """Grade a file of answers: each is correct, wrong, unparsed or timeout."""
    from pipeline_lib.config import ConfigError, PipelineConfig, apply_overrides
    from tasks.runtime.graders import conventions_of

    for override in overrides:
        if not override.startswith("grading."):
            raise ConfigError(f"--set {override}: only grading.* changes anything here, as grading.percent=unit")
    conventions = conventions_of(apply_overrides(PipelineConfig(), overrides), dataset)
    prepare(output)
    from deployments.command import output as terminal
    from deployments.command.grade_file import grade_file, print_counts

    with terminal.show_progress():
        counts = grade_file(input_file, output, conventions=conventions, grader=grader, num_workers=workers)
    print_counts(counts)
