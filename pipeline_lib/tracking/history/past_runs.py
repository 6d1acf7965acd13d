"""The pipeline runs that MLflow knows of, each with its iterations' runs and what these put on record."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from pipeline_lib.config import PipelineConfig, Settings, known_fields
from pipeline_lib.tracking.client import find_experiment, open_client
from pipeline_lib.tracking.outage import TrackingOutage
from pipeline_lib.tracking.reading import RUN_FILE
from pipeline_lib.types import IterationRecord

PARENT, RUN_KEY = "mlflow.parentRunId", "coppice.run_key"
RECORD_FILE = "record.json"
PAGE = 1000


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run, under way or ended.

    Args:
        run_id: of the parent run.
        name: as MLflow shows it.
        run_key: names the run, see `tasks.runtime.flow_tracking.run_key`.
        status: MLflow's: RUNNING, FINISHED, FAILED, KILLED.
        started_s: when its first attempt began, seconds since 1970.
        iteration_runs: ids of its iterations' runs; none for one that measured a policy only.
        datasets: URIs of store entries that MLflow names as inputs of these runs.
    """

    run_id: str
    name: str
    run_key: str
    status: str
    started_s: float
    iteration_runs: tuple[str, ...]
    datasets: frozenset[str]

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Its own id, and those of its iterations."""
        return (self.run_id, *self.iteration_runs)


def past_runs(settings: Settings) -> list[PastRun]:
    """Every run of the experiment, the latest first."""
    client = open_client(settings)
    found = list(_all_runs(client, find_experiment(client, settings)))
    children: dict[str, list[Any]] = defaultdict(list)
    for run in found:
        children[run.data.tags.get(PARENT, "")].append(run)
    return [_past_run(run, children[run.info.run_id]) for run in children[""]]


def is_pipeline_run(run: PastRun) -> bool:
    """Whether it is a run of the whole loop, as far as it came."""
    return bool(run.iteration_runs)


def run_records(settings: Settings, run: PastRun) -> list[IterationRecord]:
    """What a run's iterations put on record, in their order; of those that this version can read."""
    client = open_client(settings)
    texts = (_artifact(client, run_id, RECORD_FILE) for run_id in run.iteration_runs)
    records = []
    for text in texts:
        try:
            records += [] if text is None else [IterationRecord.model_validate_json(text)]
        except ValidationError:
            continue
    return sorted(records, key=lambda record: record.index)


def run_config(settings: Settings, run: PastRun) -> PipelineConfig | None:
    """A finished run's configuration; None for another one, or where this version cannot read it."""
    text = _artifact(open_client(settings), run.run_id, RUN_FILE)
    try:
        saved = json.loads(text or "{}").get("config")
        return None if saved is None else PipelineConfig.model_validate(known_fields(PipelineConfig, saved))
    except ValidationError:
        return None


def _all_runs(client: Any, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs(
            [experiment], f"tags.`{RUN_KEY}` != ''", max_results=PAGE, order_by=["start_time DESC"], page_token=token
        )
        yield from page
        if not (token := page.token):
            return


def _past_run(run: Any, children: list[Any]) -> PastRun:
    return PastRun(
        run_id=str(run.info.run_id),
        name=str(run.info.run_name),
        run_key=str(run.data.tags[RUN_KEY]),
        status=str(run.info.status),
        started_s=run.info.start_time / 1000,
        iteration_runs=tuple(str(child.info.run_id) for child in children),
        datasets=frozenset(uri for one in (run, *children) for uri in _datasets(one)),
    )


def _datasets(run: Any) -> Iterator[str]:
    for item in run.inputs.dataset_inputs if run.inputs is not None else ():
        uri = json.loads(item.dataset.source or "{}").get("uri", "")
        yield "/".join(uri.split("/")[-2:])


def _artifact(client: Any, run_id: str, name: str) -> str | None:
    with TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(run_id, name, folder)).read_text(encoding="utf-8")
        except TrackingOutage:
            raise
        except Exception:  # MLflow raises its own, OSError or the store's: there is none
            return None
