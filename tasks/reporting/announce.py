"""Events that somebody may want to hear of; deployments/automations.yaml turns them into notifications.

One idea: an announcement is an entry of the store. A task that is tried again, days later or in another run that comes
to the same version, finds it and is silent; the server by itself forgets within half an hour what it was sent.
"""

from __future__ import annotations

import logging
from uuid import NAMESPACE_URL, uuid5

from pipeline_lib.config import PipelineConfig
from pipeline_lib.tracking import model_name
from pipeline_lib.types import RunResult
from tasks.orchestration.context import flow_context
from tasks.runtime.flow_tracking import run_key
from tasks.runtime.stage import open_store

AUDIT_STOPPED, CHAMPION_PROMOTED = "coppice.audit.stopped", "coppice.champion.promoted"
LOGGER = logging.getLogger("coppice.announce")


def announce_result(config: PipelineConfig, result: RunResult) -> None:
    """Emits what a finished run has to say: its audit stopped it, its champion became the registry's."""
    model = model_name(config.preset)
    last = result.records[-1]
    if last.audit is not None and not last.audit.passed:
        _emit(
            AUDIT_STOPPED,
            result,
            about=run_key(config),
            resource=f"coppice.model.{model}",
            payload={
                "model": model,
                "iteration": last.index,
                "reason": last.audit.reason,
                "advice": last.audit.advice,
                "informative_share": last.audit.informative_share,
                "variance": last.audit.variance,
            },
        )
    promotion = result.promotion
    if promotion is not None and promotion.promoted:
        champion = result.records[result.decision.champion]
        _emit(
            CHAMPION_PROMOTED,
            result,
            about=champion.policy.policy_id,
            resource=f"coppice.model.{model}.version.{promotion.version}",
            payload={
                "model": model,
                "version": promotion.version,
                "previous": promotion.previous,
                "iteration": champion.index,
                "reason": promotion.reason,
                "accuracy": ", ".join(f"{e.dataset} {e.split} {e.accuracy:.1%}" for e in champion.evaluations),
            },
        )


def _emit(event: str, result: RunResult, *, about: str, resource: str, payload: dict[str, object]) -> None:
    """Hands the event, unless it was announced before, to a thread that sends it.

    Whatever goes wrong here is no reason to fail a run that is done.
    """
    if flow_context() is None:  # without an orchestrator nobody listens, and asking would start a server
        return
    from prefect.events import emit_event

    try:
        announced = open_store().entry("announce", {"event": event, "resource": resource, "about": about}, version=1)
        if announced.is_complete():
            return
        emit_event(
            event,
            resource={"prefect.resource.id": resource, "prefect.resource.name": str(payload["model"])},
            payload={**payload, "tracking_run": result.tracking_run},
            id=uuid5(NAMESPACE_URL, f"{event}/{result.tracking_run}"),  # if killed right here, the server has heard it
        )
        announced.commit(0)
    except Exception as error:
        LOGGER.warning(f"{event} is not announced: {error}")
