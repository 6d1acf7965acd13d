"""What ``--refresh STAGE`` means: which entries of the store are made again, and where that is not possible."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.store.refresh import Refresh
from tasks.runtime.flow_tracking import run_key

STAGES = {
    "problems": ("draw-problems", "draw-test-problems"),
    "search": ("search-shard", "gather-trees"),
    "score": ("score-steps",),
    "audit": ("audit-iteration",),
    "train": ("train-policy",),
    "evaluate": ("evaluate-policy",),
}


def refresh_of(config: PipelineConfig, settings: Settings, names: Sequence[str]) -> Refresh | None:
    """What a run makes again; None where nothing is named.

    Args:
        config: of the run.
        settings: where home and store are.
        names: of `STAGES`.

    Raises:
        ConfigError: no stage is called so, or this run's store or workers cannot do it.
    """
    stages = refreshed_stages(config, settings, names)
    if not stages:
        return None
    file = settings.home.resolve() / "refresh" / f"{run_key(config)}-{'-'.join(sorted(set(names)))}.json"
    return Refresh(file, stages)


def refreshed_stages(config: PipelineConfig, settings: Settings, names: Sequence[str]) -> list[str]:
    """What the store calls the stages that a person named.

    Args:
        config: of the run.
        settings: where the store is.
        names: of `STAGES`.

    Raises:
        ConfigError: see `refresh_of`.
    """
    for name in names:
        if name not in STAGES:
            nearest = difflib.get_close_matches(name, STAGES, n=1, cutoff=0.0)[0]
            known = ", ".join(STAGES)
            raise ConfigError(f"--refresh {name}: no such stage; the nearest of {known} is {nearest!r}")
    if names and settings.object_store is not None:
        raise ConfigError("--refresh: results in an object store stay as they are; use another COPPICE_STORE")
    if config.runner == "ray" and "search" in names:
        raise ConfigError("--refresh search: Ray's workers take what the store has; set runner=local")
    return [stage for name in names for stage in STAGES[name]]
