"""``coppice promote`` and ``coppice rollback``: a person's hand on the alias that deployments load.

One idea: both say what they did in the sentence that MLflow's page shows, and what a gate did not choose moves only
with a reason, which stays in the registry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline_lib.registry import Registry

PresetOption = Annotated[str, typer.Option(help="Whose adapters; the registered model is coppice-PRESET.")]


def add_to(app: typer.Typer) -> None:
    """Adds both commands."""
    app.command()(promote)
    app.command()(rollback)


def promote(
    preset: PresetOption = "tiny",
    version: Annotated[str | None, typer.Option(metavar="N", help="Version; the candidate if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also a version that no run's gate chose; say why.")] = False,
    reason: Annotated[str, typer.Option(help="Kept in the registry.")] = "",
) -> None:
    """Make a registered version the champion: what deployments load."""
    from pipeline_lib.config import ConfigError

    if force and not reason.strip():
        raise ConfigError("--force: needs --reason TEXT, which is kept in the registry")
    from pipeline_lib.report.notes import promotion_line

    registry = _open(preset)
    typer.echo(promotion_line(registry.promote(version, reason=reason.strip(), force=force), registry.name))


def rollback(
    preset: PresetOption = "tiny",
    reason: Annotated[str, typer.Option(help="Kept in the registry.")] = "no reason given",
) -> None:
    """Give `champion` back to the version that was it before."""
    from pipeline_lib.report.notes import promotion_line

    registry = _open(preset)
    typer.echo(promotion_line(registry.roll_back(reason.strip()), registry.name))


def _open(preset: str) -> Registry:
    from deployments.environment import prepare_environment
    from pipeline_lib.config import Settings

    settings = Settings()
    prepare_environment(settings)
    from pipeline_lib.tracking import open_registry

    return open_registry(settings, preset)
