"""The lines of `coppice check`, each printed as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments.command.output.progress_bar import show_progress
from deployments.preflight.findings import CheckLine

VERDICT_STYLES = {"ok": "green", "problem": "bold red", "skipped": "dim"}


def print_check_lines(lines: Iterable[CheckLine], *, console: Console | None = None) -> int:
    """Prints each line as it comes; returns how many problems there were."""
    console = console or Console()
    num_problems = 0
    for line in _with_progress(lines):
        num_problems += line.verdict == "problem"
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=8, style=VERDICT_STYLES[line.verdict])
        grid.add_column(width=12)
        grid.add_column(overflow="fold")
        grid.add_row(line.verdict, line.check, escape(line.text))
        console.print(grid)
    ending = "nothing stands in the way of a run" if num_problems == 0 else f"problems: {num_problems}"
    console.print(ending, highlight=False)
    return num_problems


def _with_progress(lines: Iterable[CheckLine]) -> Iterator[CheckLine]:
    """Each line, what goes on shown until it comes; a real model's takes minutes."""
    coming = iter(lines)
    while True:
        with show_progress():
            line = next(coming, None)
        if line is None:
            return
        yield line
