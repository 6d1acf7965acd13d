"""Self-training as a flow: `flows.loop` with a name, a description and what MLflow hears of its beginning and end."""

from __future__ import annotations

import inspect

from prefect import flow

from flows.loop import improve_policy
from pipeline_lib.config import PipelineConfig
from pipeline_lib.types import RunResult
from tasks.runtime.flow_tracking import begin_tracking, end_log, end_unfinished


@flow(
    name="self-training",
    description=inspect.getdoc(improve_policy),
    flow_run_name="{config.flow_run_name}",
    validate_parameters=True,
    on_running=[begin_tracking],
    on_completion=[end_log],
    on_failure=[end_unfinished],
    on_crashed=[end_unfinished],
    on_cancellation=[end_unfinished],
)
def self_training(config: PipelineConfig) -> RunResult:
    """Improves a policy with data that it makes itself, in the steps of `flows.loop.improve_policy`."""
    return improve_policy(config)
