"""Runs as a person asks for them: which there are, one by the beginning of its id, what its stages left.

Everything comes from tags, parameters and metrics, so also of a run that goes on, failed, or is of version 0.1.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import Field

from pipeline_lib.config import Settings
from pipeline_lib.registry.lineage import POLICY_ID
from pipeline_lib.report.metrics import is_headline
from pipeline_lib.tracking.client import find_experiment, open_client, tracking_uri
from pipeline_lib.tracking.outage import TrackingError, without_password
from pipeline_lib.tracking.reading import STOPPED
from pipeline_lib.tracking.run_tracker import CHAMPION, FLOW_RUN, RUN_KEY
from pipeline_lib.types import Record

PRESET, SEED = "coppice.preset", "coppice.seed"
PIPELINE_RUNS = f"tags.`{PRESET}` != ''"  # iterations have none
ACCURACY = re.compile(r"eval/([^/]+)/accuracy")
PAGE = 1000
ID_LENGTH = 32  # of MLflow's run ids
SQLITE = "sqlite:///"


class StageEntry(Record):
    """What a stage of an iteration read or made, by reference."""

    stage: str
    uri: str = Field(description="Where it lies: store and folder.")
    sha256: str = Field(description="Digest of its manifest.")
    num_rows: int


class IterationRun(Record):
    """One iteration of a run, as MLflow has it."""

    index: int
    run_id: str
    state: str
    metrics: dict[str, float]
    policy_id: str | None
    version: str | None = Field(description="Registered version of its adapter; None where nothing was trained.")
    stages: tuple[StageEntry, ...]

    @property
    def accuracies(self) -> dict[str, float]:
        """On the test sets, in [0, 1]."""
        return _accuracies(self.metrics)


class RunSummary(Record):
    """A run in a line."""

    run_id: str
    run_key: str
    name: str
    preset: str
    seed: int
    flow_run_id: str | None = Field(description="Prefect's id of the flow run that was at it last.")
    kind: str = Field(description="`run`, or `evaluation` of one policy.")
    state: str = Field(description="MLflow's: RUNNING, FINISHED, FAILED or KILLED.")
    started_ms: int = Field(description="Since the epoch.")
    ended_ms: int | None = Field(description="None while it goes on.")
    iterations: int = Field(description="Finished ones, the base not counted.")
    champion: int | None = Field(description="Its best iteration, 0 the base; None before the gate's last word.")
    accuracies: dict[str, float] = Field(description="The champion's on the test sets; before it is known, the latest.")


class RunDetails(RunSummary):
    """All that MLflow knows of a run."""

    params: dict[str, str] = Field(description="Every setting, as text of at most 500 characters.")
    tags: dict[str, str]
    metrics: dict[str, float] = Field(
        description="The champion's few headline metrics; before it is known, the latest."
    )
    iteration_runs: tuple[IterationRun, ...] = Field(description="The base first.")
    artifacts: str = Field(description="Where MLflow keeps its files: a folder, or an address.")

    @property
    def stopped_because(self) -> str | None:
        return self.tags.get(STOPPED)


def list_runs(settings: Settings, *, limit: int | None = None) -> list[RunSummary]:
    """The runs that there are, the latest first.

    Args:
        settings: where the tracking server or database is; a database that is not there yet is not made.
        limit: how many at most; None are all.
    """
    return [_summary(client, run) for client, run in _runs(settings, limit)]


def find_run(settings: Settings, beginning: str) -> RunDetails:
    """The run whose id begins like this.

    Raises:
        TrackingError: there is none, or more than one.
    """
    return _details(*_named_run(settings, beginning))


def whole_id(settings: Settings, beginning: str) -> str:
    """A run's id by as much of it as tells it from others; one that is whole is not looked for.

    Raises:
        TrackingError: there is none, or more than one.
    """
    if len(beginning) == ID_LENGTH:
        return beginning
    _, run = _named_run(settings, beginning)
    return str(run.info.run_id)


def _named_run(settings: Settings, beginning: str) -> tuple[Any, Any]:
    """(client, run) of the one whose id begins like this; raises TrackingError as `find_run` does."""
    found = [
        (client, run) for client, run in _runs(settings, None) if beginning and run.info.run_id.startswith(beginning)
    ]
    if not found:
        place = without_password(tracking_uri(settings))
        raise TrackingError(f"no run in {place} has an id that begins with {beginning!r}; `coppice runs ls` lists them")
    if len(found) > 1:
        ids = ", ".join(run.info.run_id[: len(beginning) + 4] for _, run in found[:5])
        raise TrackingError(f"the ids of {len(found)} runs begin with {beginning!r}: {ids}; give more of it")
    return found[0]


def running_runs(settings: Settings) -> list[RunSummary]:
    """The runs that MLflow calls RUNNING: those that go on, and those whose process was killed outright."""
    return [run for run in list_runs(settings, limit=PAGE) if run.state == "RUNNING"]


def _runs(settings: Settings, limit: int | None) -> Iterator[tuple[Any, Any]]:
    """(client, run) of each, the latest first."""
    if not settings.tracking_uri and not (settings.home.resolve() / "mlflow.db").is_file():
        return
    client = open_client(settings)
    experiment, token, left = find_experiment(client, settings), None, limit
    while left is None or left > 0:
        page = client.search_runs(
            [experiment],
            PIPELINE_RUNS,
            max_results=min(left or PAGE, PAGE),
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        yield from ((client, run) for run in page)
        token, left = page.token, None if left is None else left - len(page)
        if not token:
            return


def _summary(client: Any, run: Any) -> RunSummary:
    return RunSummary(**_fields(client, run))


def _fields(client: Any, run: Any) -> dict[str, Any]:
    tags, latest = run.data.tags, {metric.key: metric.step for metric in run.data.to_proto().metrics}
    champion = int(tags[CHAMPION]) if CHAMPION in tags else None
    return {
        "run_id": run.info.run_id,
        "run_key": tags.get(RUN_KEY, ""),
        "name": run.info.run_name,
        "preset": tags[PRESET],
        "seed": int(tags.get(SEED, 0)),
        "flow_run_id": tags.get(FLOW_RUN),
        "kind": "evaluation" if "coppice.evaluated_version" in tags or "coppice.evaluated" in tags else "run",
        "state": run.info.status,
        "started_ms": run.info.start_time,
        "ended_ms": run.info.end_time,
        "iterations": max((step for name, step in latest.items() if is_headline(name)), default=0),
        "champion": champion,
        "accuracies": _accuracies(_at(client, run, latest, champion, ACCURACY.fullmatch)),
    }


def _at(client: Any, run: Any, latest: Mapping[str, int], step: int | None, wanted: Any) -> dict[str, float]:
    """The metrics that are wanted, as they were at a step; the latest where it is None."""
    found = {}
    for name, value in run.data.metrics.items():
        if not wanted(name):
            continue
        if step is None or latest[name] == step:
            found[name] = value
            continue
        history = client.get_metric_history(run.info.run_id, name)
        found.update((name, point.value) for point in history if point.step == step)
    return dict(sorted(found.items()))


def _accuracies(metrics: Mapping[str, float]) -> dict[str, float]:
    return {match[1]: value for name, value in metrics.items() if (match := ACCURACY.fullmatch(name))}


def _details(client: Any, run: Any) -> RunDetails:
    experiment, mine = run.info.experiment_id, f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    iterations = sorted(
        (_iteration(child) for child in client.search_runs([experiment], mine)), key=lambda child: child.index
    )
    fields = _fields(client, run)
    champion = next((child for child in iterations if child.index == fields["champion"]), None)
    metrics = run.data.metrics if champion is None else champion.metrics
    return RunDetails(
        **fields,
        params=dict(run.data.params),
        tags={name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")},
        metrics={name: metrics[name] for name in sorted(metrics) if is_headline(name)},
        iteration_runs=tuple(iterations),
        artifacts=_folder(run.info.artifact_uri),
    )


def _iteration(run: Any) -> IterationRun:
    tags = run.data.tags
    return IterationRun(
        index=int(tags.get("coppice.iteration", 0)),
        run_id=run.info.run_id,
        state=run.info.status,
        metrics=dict(run.data.metrics),
        policy_id=tags.get(POLICY_ID),
        version=tags.get("coppice.version"),
        stages=tuple(_stage(item.dataset) for item in run.inputs.dataset_inputs),
    )


def _stage(dataset: Any) -> StageEntry:
    profile = json.loads(dataset.profile)
    return StageEntry(
        stage=dataset.name,
        uri=json.loads(dataset.source)["uri"],
        sha256=profile["sha256"],
        num_rows=profile["num_rows"],
    )


def _folder(uri: str) -> str:
    return url2pathname(urlsplit(uri).path) if uri.startswith("file:") else uri
