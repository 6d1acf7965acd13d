"""`coppice report`: the page about a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deployments.command.options import load_settings, require_writable


def report(
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="ID", help="MLflow run id, or its beginning; the latest finished run if left out."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the page.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page about a finished run."""
    require_writable(output)
    settings = load_settings()
    from pipeline_lib.tracking import load_run
    from pipeline_lib.tracking.history.run_list import whole_id
    from tasks.reporting.gather import load_material, render_report

    config, result = load_run(settings, None if run_id is None else whole_id(settings, run_id))
    output.write_text(render_report(config, result, load_material(settings, result)), encoding="utf-8")
    typer.echo(f"wrote {output}")
