"""The MLflow run that belongs to a flow run: its key, its beginning and, when something went wrong, its end."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.store import Entry
from pipeline_lib.store.disk import DiskFullError
from pipeline_lib.tracking import Tracker, TrackingOutage, has_finished
from pipeline_lib.tracking.history.run_folder import CONFIG_FILE, keep_config, log_file
from pipeline_lib.tracking.provenance import describe_environment
from tasks.orchestration.context import flow_context
from tasks.runtime.keys import key_text
from tasks.runtime.policies import base_policy
from tasks.runtime.progress_lines import run_log
from tasks.runtime.stage import refresh_id

if TYPE_CHECKING:
    from prefect import Flow, State
    from prefect.client.schemas.objects import FlowRun

NO_COMMIT = ""  # where version 0.1.0 had the commit of a checkout; an installed copy has none
LOGGER = logging.getLogger("coppice.tracking")


def run_key(config: PipelineConfig, flow_run: FlowRun | None = None) -> str:
    """What names the MLflow run of a flow run.

    A flow run of a deployment is named by its id, so that Retry attaches to the same MLflow run; one
    from the terminal by its configuration and base, so that the same command goes on where it was killed, also when
    something was committed meanwhile: the run keeps all commits. Code that makes another result of them shows in the
    store's keys, and `Tracker.log_iteration` puts the new one on record. One that makes
    results again is a run of its own.
    """
    flow_run = flow_run or _flow_run()
    if flow_run is not None and flow_run.deployment_id is not None:
        return str(flow_run.id)
    unnamed = config.model_copy(update={"name": None})
    again = [] if (number := refresh_id()) is None else [number]
    identity = (key_text(unnamed), base_policy(config).policy_id, NO_COMMIT, *again)
    return hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]


def _flow_run() -> FlowRun | None:
    context = flow_context()
    return context.flow_run if context else None


def open_tracker(config: PipelineConfig, flow_run: FlowRun | None = None) -> Tracker:
    """The MLflow run of this flow run, created if it is not there."""
    flow_run = flow_run or _flow_run()
    tags = describe_environment()
    if flow_run is not None:
        from prefect.utilities.urls import url_for

        tags["prefect.flow_run_id"] = str(flow_run.id)
        if (page := url_for("flow-run", obj_id=flow_run.id)) is not None:
            tags["prefect.flow_run_url"] = page
    key = run_key(config, flow_run)
    return Tracker.open(Settings(), run_key=key, run_name=config.label, config=config, tags=tags)


def begin_tracking(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's hook: a pipeline is RUNNING in MLflow from its first moment, also when it goes on after a failure.

    From then on its whole configuration and what it says are kept, too.
    """
    config = PipelineConfig.model_validate(flow_run.parameters["config"])
    _in_mlflow(flow_run, lambda tracker: _keep(tracker, config))
    run_log.say(f"{config.label} begins")


def _keep(tracker: Tracker, config: PipelineConfig) -> None:
    home = Settings().home
    run_log.open(log_file(home, tracker.run_id))
    tracker.log_files({}, {CONFIG_FILE: keep_config(home, tracker.run_id, config)})


def end_log(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's hook: what is said from now on is no part of this run."""
    run_log.say(f"ends: {state.name}")
    run_log.close()


def end_unfinished(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's hook: ends the MLflow run of a pipeline that failed or was stopped from outside."""
    error = " ".join((state.message or "").split())
    status = "FAILED" if state.is_failed() else "KILLED"
    run_log.say(error)
    _in_mlflow(flow_run, lambda tracker: tracker.end_with_error(status, error))
    end_log(flow, flow_run, state)


def _in_mlflow(flow_run: FlowRun, do: Callable[[Tracker], None]) -> None:
    """What a hook does to the flow run's MLflow run; a server that does not answer is no reason to stop."""
    try:
        do(open_tracker(PipelineConfig.model_validate(flow_run.parameters["config"]), flow_run))
    except (TrackingOutage, DiskFullError) as error:
        LOGGER.warning(str(error))


def is_tracked(entry: Entry, name: str) -> bool:
    """Whether MLflow still has the ended run that a record, or a result, names."""
    run = (entry.observations().get(name) or {}).get("tracking_run")
    return run is not None and has_finished(Settings(), run)
