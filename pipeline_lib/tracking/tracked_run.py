"""One MLflow run, written so that writing twice equals writing once.

One idea: look once, then write only what is missing, in as few requests as the server takes. A metric's points are
always written in ascending order of their steps, and those of a request are kept all or not at all; so the latest
step that the run shows tells which points are there. MLflow itself is handed in: only `tracking.client` imports it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.report.metrics import metric_key
from pipeline_lib.tracking.links import link_into
from pipeline_lib.tracking.outage import TrackingError, once_nobody_else_writes
from pipeline_lib.types import Ref

MAX_BATCH_METRICS = 800  # of the 1,000 entries that MLflow takes in one request
MAX_BATCH_PARAMS = MAX_BATCH_TAGS = 100  # its own limits
MAX_DIGEST_CHARS = 36
ERROR_TAG, RERUN_ERROR_TAG = "coppice.error", "coppice.rerun_error"

Point = tuple[str, int, float]  # metric, step, value


class TrackedRun:
    """One run on the tracking server: a pipeline run, or one iteration of it.

    Args:
        client: an MLflow client with its own tracking URI.
        entities: the module ``mlflow.entities``.
        run: the run as the server knows it.
    """

    def __init__(self, client: Any, entities: Any, run: Any) -> None:
        self._client = client
        self._entities = entities
        self.run_id = str(run.info.run_id)
        self.begin_ms = int(run.info.start_time)
        self._artifact_uri = str(run.info.artifact_uri)
        self._status = str(run.info.status)
        self._params: dict[str, str] = dict(run.data.params)
        self._tags: dict[str, str] = dict(run.data.tags)
        self._latest: dict[str, int] = {metric.key: metric.step for metric in run.data.to_proto().metrics}

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended well."""
        return self._status == "FINISHED"

    def tag(self, name: str) -> str | None:
        """The value of a tag; None without it."""
        return self._tags.get(name)

    def log(
        self,
        *,
        params: Mapping[str, str] | None = None,
        points: Iterable[Point] = (),
        tags: Mapping[str, str] | None = None,
        model_id: str | None = None,
        again: bool = False,
    ) -> None:
        """Logs parameters and points that are not there yet, and tags that have another value.

        Args:
            params: name to value.
            points: (metric, step, value), in any order.
            tags: name to value.
            model_id: a logged model that the points belong to as well.
            again: logs points also where there are some; of two at one step MLflow shows the later one.

        Raises:
            TrackingError: a parameter is there with another value: the run's key was used for something else.
        """
        fresh_params = self._fresh_params(params or {})
        fresh_tags = {name: value for name, value in (tags or {}).items() if self._tags.get(name) != value}
        metrics = self._fresh_points(points, model_id, again)
        param_items = [self._entities.Param(name, value) for name, value in fresh_params.items()]
        tag_items = [self._entities.RunTag(name, value) for name, value in fresh_tags.items()]
        while metrics or param_items or tag_items:
            self._client.log_batch(
                self.run_id,
                metrics=metrics[:MAX_BATCH_METRICS],
                params=param_items[:MAX_BATCH_PARAMS],
                tags=tag_items[:MAX_BATCH_TAGS],
            )
            metrics = metrics[MAX_BATCH_METRICS:]
            param_items, tag_items = param_items[MAX_BATCH_PARAMS:], tag_items[MAX_BATCH_TAGS:]
        self._params |= fresh_params
        self._tags |= fresh_tags

    def log_points(self, points: Iterable[Point], *, model_id: str | None = None) -> None:
        """Logs every (metric, step, value) whose metric has no point at that step yet; see `log`."""
        self.log(points=points, model_id=model_id)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets the tags that have another value."""
        self.log(tags=tags)

    def _fresh_params(self, params: Mapping[str, str]) -> dict[str, str]:
        for name, value in params.items():
            logged = self._params.get(name, value)
            if logged != value:
                raise TrackingError(
                    f"tracking: run {self.run_id} was started with {name}={logged}, now {value}; start a new run"
                )
        return {name: value for name, value in params.items() if name not in self._params}

    def _fresh_points(self, points: Iterable[Point], model_id: str | None, again: bool) -> list[Any]:
        fresh, now = [], int(time.time() * 1000)
        for name, step, value in sorted(points, key=lambda point: point[1]):
            name = metric_key(name)
            if again or step > self._latest.get(name, -1):
                self._latest[name] = max(step, self._latest.get(name, -1))
                fresh.append(self._entities.Metric(name, float(value), now, step, model_id=model_id))
        return fresh

    def log_datasets(self, refs: Mapping[str, Ref], *, root: str) -> None:
        """Logs each store entry as an input with its digest; the name becomes its context."""
        entities = self._entities
        datasets = [
            entities.DatasetInput(
                dataset=entities.Dataset(
                    name=name,
                    digest=ref.sha256[:MAX_DIGEST_CHARS],
                    source_type="local",
                    source=json.dumps({"uri": f"{root}/{ref.uri}"}),
                    profile=json.dumps({"num_rows": ref.num_rows, "sha256": ref.sha256}),
                ),
                tags=[entities.InputTag("mlflow.data.context", name)],
            )
            for name, ref in refs.items()
        ]
        once_nobody_else_writes(lambda: self._client.log_inputs(self.run_id, datasets=datasets))

    def log_files(self, artifacts: Mapping[str, Path], texts: Mapping[str, str]) -> None:
        """Links or copies files and folders under their names, and writes texts to theirs (``figures/audit.html``)."""
        for name, path in artifacts.items():
            if link_into(self._artifact_uri, path, name):
                continue
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), artifact_path=name)
            else:
                self._client.log_artifact(self.run_id, str(path), artifact_path=name)
        for name, text in texts.items():
            self._client.log_text(self.run_id, text, name)

    def reopen(self) -> None:
        """Makes a run that had failed or was killed RUNNING again; a finished one stays as it is, times included."""
        if self._status not in ("RUNNING", "FINISHED"):
            self._client.update_run(self.run_id, status="RUNNING")
            self._status = "RUNNING"
        for name in (ERROR_TAG, RERUN_ERROR_TAG):
            if self._tags.pop(name, None) is not None:
                self._client.delete_tag(self.run_id, name)

    def end_with_error(self, status: str, error: str) -> None:
        """Ends the run as FAILED or KILLED and says why in the tag ``coppice.error``.

        A run that is FINISHED has its results: it stays so when it is run again in vain, and the tag
        ``coppice.rerun_error`` says why.
        """
        if self.is_finished:
            self.set_tags({RERUN_ERROR_TAG: error})
            return
        self.set_tags({ERROR_TAG: error})
        self.end(status)

    def end(self, status: str) -> None:
        """Ends the run as FINISHED, FAILED or KILLED."""
        if self._status != status:
            self._client.set_terminated(self.run_id, status=status)
            self._status = status
