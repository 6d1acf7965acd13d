"""Small pipeline configurations, and what a run left in its home."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from deployments.presets import preset
from pipeline_lib.config import PipelineConfig, apply_overrides

SMALL = (
    "search.num_shards=2",
    "num_iterations=1",
    "problems.num_problems=24",
    "problems.num_validation=16",
    "search.num_simulations=8",
    "evaluation.num_problems=16",
)


def small_config(*overrides: str) -> PipelineConfig:
    """The tiny preset, smaller."""
    return apply_overrides(preset("tiny"), [*SMALL, *overrides])


def manifests(home: Path) -> dict[str, str]:
    """Every complete entry of the store with the digest of its manifest, and so of its files."""
    store = home / "store"
    return {
        path.parent.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.glob("*/*/manifest.json")
    }


def client(home: Path) -> Any:
    """An MLflow client for the home's database."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")


def children(home: Path, run_id: str) -> list[Any]:
    """The child runs of an MLflow run."""
    mlflow = client(home)
    experiment = mlflow.get_run(run_id).info.experiment_id
    found: list[Any] = mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return found
