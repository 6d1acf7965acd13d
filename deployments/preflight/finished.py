"""A run that is asked for again and of which nothing is left to do: its result, from the store.

One idea: the flow itself is asked, as by a plan, so that the answer rests on all that the stages' keys hold and on the
digest of every file. No server starts, and neither Prefect nor MLflow is loaded: nearly all that such a run costs.

What a rerun does besides finding its stages is looked for first. It goes the ordinary way unless MLflow has the run as
FINISHED, with the very same configuration, by this checkout's commit, with no note of an error, and unless `champion`
is still what the run left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.store import StoreError
from pipeline_lib.tracking.database import UnreadableError, champion_version, finished_tags
from pipeline_lib.tracking.history.run_folder import runs_told
from pipeline_lib.tracking.provenance import checkout_commit
from pipeline_lib.tracking.registered_model import model_name
from pipeline_lib.tracking.run_tracker import COMMITS
from pipeline_lib.tracking.tracked_run import ERROR_TAG, RERUN_ERROR_TAG
from pipeline_lib.types import RunResult


def finished_run(config: PipelineConfig, settings: Settings) -> RunResult | None:
    """What the run came to; None where anything is left to do, or where only MLflow itself can tell.

    Args:
        config: of the run, its name included.
        settings: where home, store and tracking database are.

    Raises:
        ConfigError: the run could not begin here, as it could not the ordinary way.
    """
    try:
        told = [run for run in runs_told(settings.home, config) if _is_settled(run, settings)]
        if not told:
            return None  # before anything that takes longer is loaded
        result = _look(config)
        if result is None or result.tracking_run not in told:
            return None
        return result if champion_version(settings, model_name(config.preset)) == _champion_left(result) else None
    except UnreadableError:
        return None


def _is_settled(run_id: str, settings: Settings) -> bool:
    """Whether MLflow has it as finished, and a rerun would put nothing new on record."""
    tags = finished_tags(settings, run_id)
    if tags is None or tags.keys() & {ERROR_TAG, RERUN_ERROR_TAG}:
        return False
    commit = checkout_commit()
    return commit is None or commit in tags.get(COMMITS, "").split()


def _look(config: PipelineConfig) -> RunResult | None:
    """The result, where the store has every stage whole and MLflow every record's run."""
    from flows.loop import improve_policy
    from tasks.runtime.stage import NotInStoreError, Stage, looking_only

    def look(stage: Stage[..., Any], arguments: Mapping[str, Any]) -> Any:
        if stage.find(**arguments) is None:
            raise NotInStoreError(stage.name)
        return stage.result(**arguments)

    with looking_only(look):
        try:
            return improve_policy(config)
        except (NotInStoreError, StoreError):
            return None


def _champion_left(result: RunResult) -> str | None:
    """The version that the alias `champion` named when the run had ended."""
    if result.promotion is None:
        return None
    return result.promotion.version if result.promotion.promoted else result.promotion.previous
