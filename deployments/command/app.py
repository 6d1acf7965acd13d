"""The `coppice` command.

One idea: it starts at once. Everything but typer is imported by the subcommand that needs it, so
that ``--help`` and every refusal of a bad setting take a fraction of a second.
"""

from __future__ import annotations

import sys

import typer

from deployments.command import bench, champion, grade, operate, run
from deployments.command.options import is_debugging
from deployments.errors import describe_error

app = typer.Typer(
    help="A language model improves its own step-by-step reasoning: search, score, audit, train, evaluate, repeat.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for family in (run, grade, bench, champion, operate):
    family.add_to(app)


def main() -> None:
    """Entry point: errors become one line on stderr; COPPICE_DEBUG=1 shows the traceback instead."""
    try:
        app()
    except Exception as error:
        if is_debugging():
            raise
        line, code = describe_error(error)
        typer.echo(line, err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
