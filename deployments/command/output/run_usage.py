"""Disk use per run, where the housekeeping that counts it is there."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from pipeline_lib.config import Settings


def bytes_by_run(settings: Settings, run_ids: Sequence[str]) -> dict[str, int] | None:
    """Bytes that each run has in store and tracking, what runs share counted for each; None where nothing counts them.

    Args:
        settings: where store and tracking are.
        run_ids: of MLflow.
    """
    try:
        usage = importlib.import_module("tasks.housekeeping.usage")
    except ModuleNotFoundError:
        return None
    return {run_id: usage.bytes_of_run(settings, run_id) for run_id in run_ids}


def human_size(num_bytes: int) -> str:
    """Bytes as people read them.

    Example: ``human_size(2_600_000) == "2.5 MiB"``
    """
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit in ("B", "KiB") else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError
