"""`coppice prune` and `coppice store verify`: the disk of a home."""

from __future__ import annotations

import re
from contextlib import nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.command.options import GroupInSections, load_settings

if TYPE_CHECKING:
    from tasks.housekeeping.prune import PrunePlan

SECONDS = {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}

store_app = typer.Typer(
    cls=GroupInSections, help="The results of all stages.", no_args_is_help=True, rich_markup_mode=None
)


def prune(
    keep_runs: Annotated[int, typer.Option(min=1, help="How many finished runs stay, the latest ones.")],
    older_than: Annotated[
        str | None, typer.Option(metavar="TIME", help="Runs that started later stay as well: 12h, 30d or 4w.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and its size.")] = False,
) -> None:
    """Remove old runs, and what only they need; champions and what a rollback needs stay."""
    older_than_s = _seconds(older_than)
    settings = load_settings()
    from tasks.housekeeping.prune import nothing_else_running, plan_prune
    from tasks.housekeeping.prune import prune as remove

    with nullcontext() if dry_run else nothing_else_running(settings):
        plan = plan_prune(settings, keep_runs=keep_runs, older_than_s=older_than_s)
        _say(plan, "would go" if dry_run else "goes")
        if not dry_run:
            remove(settings, plan)


@store_app.command("verify")
def verify() -> None:
    """Read every result and compare it with its checksums; exit code 1 where one is damaged."""
    settings = load_settings()
    from pipeline_lib.store.prune import verify as check_all

    num_whole, damaged = 0, []
    for uri, damage in check_all(settings.store_root):
        num_whole += damage is None
        if damage is not None:
            damaged.append(uri)
            typer.echo(f"{uri}: {damage.what}")
    if settings.object_store is not None:
        typer.echo(f"(the copies on this machine; those in {settings.object_store} are checked when they are fetched)")
    typer.echo(f"{num_whole:,} results are whole, {len(damaged):,} damaged")
    if damaged:
        typer.echo("a run that needs a damaged one sets it aside and makes it again; have the disk looked at")
        raise typer.Exit(1)


def _say(plan: PrunePlan, goes: str) -> None:
    for run in plan.runs:
        started = datetime.fromtimestamp(run.started_s)
        typer.echo(f"{goes}: {run.name} ({run.status.lower()}, started {started:%Y-%m-%d %H:%M}, {run.run_id})")
    if plan.entries or plan.leftovers:
        typer.echo(f"{goes}: {len(plan.entries):,} results in the store, {len(plan.leftovers):,} leftovers of kills")
    typer.echo(f"{goes}: {plan.num_bytes / 1e6:,.1f} MB in all" if plan.runs or plan.entries else "nothing to prune")


def _seconds(text: str | None) -> float:
    """What a time like ``30d`` is in seconds; 0 without one."""
    from pipeline_lib.config import ConfigError

    if text is None:
        return 0.0
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if match is None:
        raise ConfigError(f"--older-than {text}: a number with h, d or w, as 30d")
    return float(match[1]) * SECONDS[match[2]]
