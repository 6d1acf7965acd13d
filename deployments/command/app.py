"""The `coppice` command: its subcommands, and what becomes of their errors.

One idea: it starts at once. Everything but typer is imported by the subcommand that needs it, so
that ``--help`` and every refusal of a bad setting take a fraction of a second.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from deployments.command.check import check
from deployments.command.config import config
from deployments.command.housekeeping import prune, store_app
from deployments.command.options import GroupInSections, is_debugging
from deployments.command.output.errors import describe_error
from deployments.command.results.champion import promote, rollback
from deployments.command.results.model import export, serve_model
from deployments.command.results.report import report
from deployments.command.results.runs import runs
from deployments.command.run import evaluate, resume, run
from deployments.command.service import alerts, down, serve, up, worker
from deployments.command.status import logs, status
from deployments.command.study import study
from deployments.command.tools.baseline import baseline
from deployments.command.tools.bench import bench
from deployments.command.tools.build_base import build_base
from deployments.command.tools.grade import grade

SUBCOMMANDS = {
    "Train and measure": (check, config, run, resume, evaluate, report, grade),
    "Comparisons": (study, baseline),
    "The champion": (promote, rollback, export, serve_model),
    "Servers and schedules": (up, down, status, logs, worker, alerts),
    "Housekeeping": (prune,),
    "Development": (bench, build_base),
}


app = typer.Typer(
    cls=GroupInSections,
    rich_markup_mode=None,
    help="A language model improves its own step-by-step reasoning: search, score, audit, train, evaluate, repeat.",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
OLD_NAMES = (serve,)
app.add_typer(runs, name="runs", rich_help_panel="Train and measure")
for panel, subcommands in SUBCOMMANDS.items():
    for subcommand in subcommands:
        app.command(rich_help_panel=panel)(subcommand)
app.add_typer(store_app, name="store", rich_help_panel="Housekeeping")
for old_name in OLD_NAMES:
    app.command(hidden=True)(old_name)


def main() -> None:
    """Entry point: errors become one line on stderr; COPPICE_DEBUG=1 shows the traceback instead."""
    try:
        app(prog_name="coppice")
    except Exception as error:
        if is_debugging():
            raise
        line, code = describe_error(error)
        typer.echo(line, err=True)
        sys.exit(code)


def print_version(wanted: bool) -> None:
    """Prints the installed version and ends the command."""
    if wanted:
        from pipeline_lib.distribution import installed_version

        typer.echo(f"coppice {installed_version() or '(not installed)'}")
        raise typer.Exit


@app.callback()
def options_of_the_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declares the options that come before a subcommand; their callbacks do the work."""


if __name__ == "__main__":
    main()
