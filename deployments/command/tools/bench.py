"""`coppice bench`: runs the benchmarks of the checkout in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from deployments.command.options import load_settings, require_writable

ROOT = Path(__file__).resolve().parents[3]


def bench(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the ratios to this file.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="PART", help="Measure one part: search, steps, grading, flow, cluster, vllm or gpu."),
    ] = None,
) -> None:
    """Measure throughput against simpler schedules, as ratios on this machine."""
    from pipeline_lib.config import ConfigError

    folder = ROOT / "tests" / "benchmarks"
    if not (folder / "__main__.py").is_file():
        raise ConfigError(f"bench: {folder} has no benchmarks; run it from a checkout installed with pip install -e .")
    require_writable(json_file)
    load_settings(keeps_results=False)
    arguments = [] if json_file is None else ["--json", str(json_file.resolve())]
    arguments += [] if only is None else ["--only", only]
    raise typer.Exit(subprocess.run([sys.executable, str(folder), *arguments], cwd=ROOT, check=False).returncode)
