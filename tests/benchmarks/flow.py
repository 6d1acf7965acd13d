"""What the flow costs beside the work of its stages, and what a run costs of which nothing is left to do."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.measuring import Figure

from pipeline_lib.config import PipelineConfig, Settings


def flow_figures(config: PipelineConfig, home: Path) -> list[Figure]:
    """The figures of the room ``flow``: one whole run in this process, then the same one again.

    The overhead is what of the flow run's wall time, its tracking included, no stage's own clock has seen. The
    start of an ephemeral orchestration server comes before the flow run and is reported beside it.

    Args:
        config: what is run.
        home: an empty folder for store, tracking database and artifacts.
    """
    move_home(home)
    from deployments.command.output.progress_bar import show_progress
    from flows.self_training import self_training

    with show_progress():
        started = time.perf_counter()
        result = self_training(config)
        wall_s = time.perf_counter() - started
        started = time.perf_counter()
        self_training(config)
        rerun_s = time.perf_counter() - started
    stages: dict[str, float] = {}
    for record in result.records:
        for name, seconds in record.seconds.items():
            stages[name] = stages.get(name, 0.0) + seconds
    inside = sum(stages.values())
    details = {
        "flow_run_s": round(result.wall_s, 2),
        "with_server_start_s": round(wall_s, 2),
        "overhead_share_with_server_start": round(1 - inside / wall_s, 4),
        "stage_s": {name: round(seconds, 2) for name, seconds in stages.items()},
        "iterations": len(result.records) - 1,
    }
    return [
        Figure("flow.overhead_share", 1 - inside / result.wall_s, 0.1, at_least=False, details=details),
        Figure("flow.cached_rerun_s", rerun_s),
    ]


def move_home(home: Path) -> None:
    """Store, tracking and results go below `home`; must come before anything imports the orchestrator."""
    from deployments.environment import prepare_environment

    os.environ["COPPICE_HOME"] = str(home)
    for name in ("COPPICE_TRACKING_URI", "PREFECT_LOCAL_STORAGE_PATH"):
        os.environ.pop(name, None)
    prepare_environment(Settings())
