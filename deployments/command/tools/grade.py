"""`coppice grade`: the subcommand; grade_file.py does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments.command.options import load_settings, require_writable

GradingSetOption = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Change a convention, for example grading.percent=unit; repeatable."
    ),
]


def grade(
    input_file: Annotated[
        Path,
        typer.Option(
            "--input",
            metavar="FILE",
            help="JSONL; every row has `gold`, the right answer, and `prediction`: text or number.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Gets the same rows with `grade` and `answer` (`extracted` where a row has its own) added; replaced.",
        ),
    ],
    grader: Annotated[
        str, typer.Option(metavar="NAME", help="math, or your own verifier, my_package.my_module:verify.")
    ] = "math",
    dataset: Annotated[
        str, typer.Option(metavar="NAME", help="Dataset whose conventions hold: gsm8k, math, file, …")
    ] = "math",
    overrides: GradingSetOption = [],  # noqa: B006  typer copies it
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; half of the cores if left out.")] = None,
) -> None:
    """Grade a file of answers: each is correct, wrong, unparsed or timeout."""
    from pipeline_lib.config import ConfigError, PipelineConfig, apply_overrides
    from tasks.runtime.graders import conventions_of

    for override in overrides:
        if not override.startswith("grading."):
            raise ConfigError(f"--set {override}: only grading.* changes anything here, as grading.percent=unit")
    conventions = conventions_of(apply_overrides(PipelineConfig(), overrides), dataset)
    require_writable(output)
    load_settings(keeps_results=False)
    from deployments.command.output.progress_bar import show_progress
    from deployments.command.tools.grade_file import grade_file, print_counts

    with show_progress():
        counts = grade_file(input_file, output, conventions=conventions, grader=grader, num_workers=workers)
    print_counts(counts)
