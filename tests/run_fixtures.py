"""Small pipeline configurations, and what a run left in its home."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from deployments.presets import preset
from pipeline_lib.config import PipelineConfig, apply_overrides, sqlite_uri
from pipeline_lib.types import RunResult

SMALL = (
    "search.num_shards=2",
    "num_iterations=1",
    "problems.num_problems=24",
    "problems.num_validation=16",
    "search.num_simulations=8",
    "evaluation.num_problems=16",
)

# A run of seconds whose policy is a script: the same bytes whenever and however often it is resumed.
SCRIPTED = (
    "policy.backend=scripted",
    "problems.num_problems=16",
    "problems.num_validation=4",
    "evaluation.datasets=tiny-word",
    "evaluation.num_problems=4",
    "evaluation.num_samples=0",
    "train.num_epochs=1",
)
OF_ONE_RUN = ("record-iteration", "finish-run", "announce")  # their keys name the run, or a version in its registry


def small_config(*overrides: str) -> PipelineConfig:
    """The tiny preset, smaller."""
    return apply_overrides(preset("tiny"), [*SMALL, *overrides])


def run_in(home: Path, config: PipelineConfig) -> RunResult:
    """The result of the flow in a home, in this process."""
    from flows.self_training import self_training

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        return self_training(config)


def manifests(home: Path) -> dict[str, str]:
    """Every complete entry of the store with the digest of its manifest, and so of its files."""
    store = home / "store"
    return {
        path.parent.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.glob("*/*/manifest.json")
    }


def of_content(home: Path) -> dict[str, str]:
    """`manifests` without the entries that another run of the same configuration has under other keys."""
    return {uri: digest for uri, digest in manifests(home).items() if not uri.startswith(OF_ONE_RUN)}


def read_whole(file: Path) -> None:
    """Raises unless the file is what its name says, to the end."""
    if file.suffix == ".parquet":
        pq.read_table(file)
    elif file.suffix == ".json":
        json.loads(file.read_bytes())
    elif file.suffix == ".safetensors":
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                tensors.get_tensor(name)


def client(home: Path) -> Any:
    """An MLflow client for the home's database."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=sqlite_uri(home / "mlflow.db"))


def children(home: Path, run_id: str) -> list[Any]:
    """The child runs of an MLflow run."""
    mlflow = client(home)
    experiment = mlflow.get_run(run_id).info.experiment_id
    found: list[Any] = mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return found


def mlflow_runs(uri: str, flow_run_id: object) -> dict[str, Any]:
    """The MLflow runs of a deployed flow run by what follows its id in their keys; nothing does in the parent's."""
    from mlflow import MlflowClient

    mlflow = MlflowClient(tracking_uri=uri)
    experiment = mlflow.get_experiment_by_name("coppice")
    found = mlflow.search_runs([experiment.experiment_id], f"tags.`coppice.run_key` LIKE '{flow_run_id}%'")
    keys = [run.data.tags["coppice.run_key"].removeprefix(str(flow_run_id)) for run in found]
    assert len(set(keys)) == len(keys), "a run was created twice"
    return dict(zip(keys, found, strict=True))


def mlflow_points(uri: str, runs: dict[str, Any]) -> Counter[tuple[str, str, int]]:
    """How many values there are of each metric at each step of each run."""
    from mlflow import MlflowClient

    mlflow = MlflowClient(tracking_uri=uri)
    return Counter(
        (key, name, point.step)
        for key, run in runs.items()
        for name in run.data.metrics
        for point in mlflow.get_metric_history(run.info.run_id, name)
    )
