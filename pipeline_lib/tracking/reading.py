"""Runs read back from MLflow: their result, the files that they left, how they ended."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline_lib.config import PipelineConfig, Settings, known_fields
from pipeline_lib.tracking.client import find_experiment, import_mlflow, open_client, tracking_uri
from pipeline_lib.tracking.database import UnreadableError, finished_tags
from pipeline_lib.tracking.outage import TrackingError, TrackingOutage, without_password
from pipeline_lib.types import RunResult

STOPPED = "coppice.stopped_because"
RUN_FILE = "run.json"


def load_run(settings: Settings, run_id: str | None = None) -> tuple[PipelineConfig, RunResult]:
    """Configuration and result of a finished run, the latest when `run_id` is None.

    What another version of Coppice saved is read as far as this one knows it.

    Raises:
        TrackingError: there is no such run, it has not finished, or this version does not understand it.
    """
    client = open_client(settings)
    if run_id is None:
        run_id = _latest_finished(client, settings)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(client.download_artifacts(run_id, RUN_FILE, folder))
        except TrackingOutage:
            raise
        except Exception as error:  # MLflow raises its own, OSError or the store's, depending on where artifacts lie
            raise TrackingError(
                f"tracking: run {run_id} has no {RUN_FILE}; it is unknown or has not finished"
            ) from error
        saved = json.loads(path.read_text(encoding="utf-8"))
    try:
        config = PipelineConfig.model_validate(known_fields(PipelineConfig, saved["config"]))
        return config, RunResult.model_validate(saved["result"])
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise TrackingError(
            f"tracking: {RUN_FILE} of run {run_id} is of another version ({where}: {error.errors()[0]['msg']}); read "
            "it with the version that wrote it"
        ) from None


def load_text(settings: Settings, run_id: str, name: str) -> str | None:
    """An artifact of a run as text; None when the run has none of that name."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(open_client(settings).download_artifacts(run_id, name, folder))
        except TrackingOutage:
            raise
        except Exception:  # as in `load_run`
            return None
        return path.read_text(encoding="utf-8")


def has_finished(settings: Settings, run_id: str) -> bool:
    """Whether the run is there and ended well; False also where the server does not say."""
    try:
        return finished_tags(settings, run_id) is not None
    except UnreadableError:
        pass
    try:
        info = open_client(settings).get_run(run_id).info
    except TrackingOutage:
        return False
    except import_mlflow().exceptions.MlflowException:  # no such run: another database, or one that was lost
        return False
    return bool(info.status == "FINISHED" and info.lifecycle_stage == "active")


def _latest_finished(client: Any, settings: Settings) -> str:
    query = f"attributes.status = 'FINISHED' AND tags.`{STOPPED}` != ''"
    experiment = find_experiment(client, settings)
    found = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time DESC"])
    if not found:
        raise TrackingError(
            f"tracking: no finished run in {without_password(tracking_uri(settings))}; start one with `coppice run`"
        )
    return str(found[0].info.run_id)
