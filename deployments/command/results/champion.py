"""`coppice promote` and `coppice rollback`: move the alias `champion`, which deployments load, by hand.

Both print what they did in the sentence that MLflow's page shows. A version that no gate chose becomes champion only
with a reason, which stays in the registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from deployments.command.options import load_settings

if TYPE_CHECKING:
    from pipeline_lib.registry import Registry

TrainedByOption = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Preset of the runs that trained it; the registered model is coppice-PRESET.",
    ),
]


def promote(
    preset: TrainedByOption = "tiny",
    version: Annotated[
        str | None, typer.Option(metavar="N", help="Version to promote; the candidate if left out.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Allow a version that no run's gate chose; needs --reason.")
    ] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, in your words; kept in the registry.")] = "",
) -> None:
    """Make a registered version the champion, which deployments load."""
    from pipeline_lib.config import ConfigError

    if force and not reason.strip():
        raise ConfigError("--force: needs --reason TEXT, which is kept in the registry")
    from pipeline_lib.report.notes import promotion_line

    registry = _open_registry(preset)
    typer.echo(promotion_line(registry.promote(version, reason=reason.strip(), force=force), registry.name))


def rollback(
    preset: TrainedByOption = "tiny",
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why, in your words; kept in the registry.")
    ] = "no reason given",
) -> None:
    """Make the version that was champion before the champion again."""
    from pipeline_lib.report.notes import promotion_line

    registry = _open_registry(preset)
    typer.echo(promotion_line(registry.roll_back(reason.strip()), registry.name))


def _open_registry(preset: str) -> Registry:
    settings = load_settings()
    from pipeline_lib.tracking import open_registry

    return open_registry(settings, preset)
