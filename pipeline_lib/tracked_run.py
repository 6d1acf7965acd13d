"""One MLflow run, written so that writing twice equals writing once.

One idea: look before writing. Parameters, metric points and inputs that are there are left alone,
so a retried pipeline may log everything again. MLflow itself is handed in: it is imported in
`pipeline_lib.tracking` only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.metrics import metric_key
from pipeline_lib.types import Ref

MAX_BATCH_METRICS = 1000  # MLflow's own limits of one request
MAX_BATCH_PARAMS = 100
MAX_DIGEST_CHARS = 36

Point = tuple[str, int, float]  # metric, step, value


class TrackingError(ValueError):
    """The tracking database cannot serve this request; the message is one line and says what to do."""


class TrackedRun:
    """One run on the tracking server.

    Args:
        client: an MLflow client with its own tracking URI.
        entities: the module ``mlflow.entities``.
        run_id: an existing run.
    """

    def __init__(self, client: Any, entities: Any, run_id: str) -> None:
        self._client = client
        self._entities = entities
        self.run_id = run_id

    def log_params(self, params: Mapping[str, str]) -> None:
        """Logs the parameters that are not there yet.

        Raises:
            TrackingError: one is there with another value: the run's key was used for something else.
        """
        known = self._client.get_run(self.run_id).data.params
        for name, value in params.items():
            if known.get(name, value) != value:
                raise TrackingError(
                    f"tracking: run {self.run_id} was started with {name}={known[name]}, now {value}; start a new run"
                )
        fresh = [self._entities.Param(name, value) for name, value in params.items() if name not in known]
        for batch in _batches(fresh, MAX_BATCH_PARAMS):
            self._client.log_batch(self.run_id, params=batch)

    def log_points(self, points: Iterable[Point]) -> None:
        """Logs every (metric, step, value) whose metric has no point at that step yet."""
        known = self._client.get_run(self.run_id).data.metrics
        steps: dict[str, set[int]] = {}
        fresh, now = [], int(time.time() * 1000)
        for name, step, value in points:
            name = metric_key(name)
            if name in known and name not in steps:
                steps[name] = {point.step for point in self._client.get_metric_history(self.run_id, name)}
            if step not in steps.setdefault(name, set()):
                steps[name].add(step)
                fresh.append(self._entities.Metric(name, float(value), now, step))
        for batch in _batches(fresh, MAX_BATCH_METRICS):
            self._client.log_batch(self.run_id, metrics=batch)

    def log_datasets(self, refs: Mapping[str, Ref], *, root: Path) -> None:
        """Logs each store entry as an input with its digest; the name becomes its context."""
        entities = self._entities
        self._client.log_inputs(
            self.run_id,
            datasets=[
                entities.DatasetInput(
                    dataset=entities.Dataset(
                        name=name,
                        digest=ref.sha256[:MAX_DIGEST_CHARS],
                        source_type="local",
                        source=json.dumps({"uri": str(root / ref.uri)}),
                        profile=json.dumps({"num_rows": ref.num_rows, "sha256": ref.sha256}),
                    ),
                    tags=[entities.InputTag("mlflow.data.context", name)],
                )
                for name, ref in refs.items()
            ],
        )

    def log_files(self, artifacts: Mapping[str, Path], texts: Mapping[str, str]) -> None:
        """Copies files and folders under their names, and writes texts to theirs (``figures/audit.html``)."""
        for name, path in artifacts.items():
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), artifact_path=name)
            else:
                self._client.log_artifact(self.run_id, str(path), artifact_path=name)
        for name, text in texts.items():
            self._client.log_text(self.run_id, text, name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_tag(self.run_id, name, value)

    def reopen(self) -> None:
        """Makes a run that had ended RUNNING again."""
        if self._client.get_run(self.run_id).info.status != "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")

    def end(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status=status)


def _batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
