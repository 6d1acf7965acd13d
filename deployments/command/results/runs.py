"""`coppice runs ls`, `show` and `diff`: which runs there are, what is known of one, how two differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deployments.command.options import GroupInSections, load_settings

if TYPE_CHECKING:
    from pipeline_lib.tracking.history.run_list import RunDetails

RunArgument = Annotated[
    str, typer.Argument(metavar="ID", help="MLflow run id, or as much of its beginning as tells it from others.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

runs = typer.Typer(
    cls=GroupInSections, help="List runs, show one, compare two.", no_args_is_help=True, rich_markup_mode=None
)


@runs.command("ls")
def list_all(
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many, the latest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List runs, the latest first, with their champion's accuracies."""
    settings = load_settings()
    from deployments.command.output.run_tables import print_json, print_runs, runs_json
    from pipeline_lib.tracking.history.run_list import list_runs
    from tasks.housekeeping.usage import bytes_of_runs

    found = list_runs(settings, limit=count)
    usage = bytes_of_runs(settings)
    if as_json:
        print_json(runs_json(found, usage))
    else:
        print_runs(found, usage)


@runs.command()
def show(run_id: RunArgument, as_json: JsonOption = False) -> None:
    """Show a run: settings, iterations, stages with their place in the store, ids and paths."""
    run = _find(run_id)
    from deployments.command.output.run_tables import details_json, print_details, print_json
    from pipeline_lib.config import Settings

    if as_json:
        print_json(details_json(run, Settings()))
    else:
        print_details(run, Settings())


@runs.command()
def diff(
    first: RunArgument,
    second: RunArgument,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs: settings that differ, and the champions' metrics side by side."""
    both = _find(first), _find(second)
    from deployments.command.output.run_tables import difference_json, print_difference, print_json

    if as_json:
        print_json(difference_json(*both))
    else:
        print_difference(*both)


def _find(beginning: str) -> RunDetails:
    settings = load_settings()
    from pipeline_lib.tracking.history.run_list import find_run

    return find_run(settings, beginning)
