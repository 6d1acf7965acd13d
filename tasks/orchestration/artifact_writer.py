"""How artifacts get to Prefect's server: at most one per flow run, key and description, and never in the way of work.

One idea: look before writing. A stage that runs again after a failure brings its artifact up to date
instead of adding a version; a server that does not answer costs the picture, not the stage. One that answers too late
has written all the same, and what was then sent once more stands there twice until `drop_doubles_of`.
"""

from __future__ import annotations

import logging
import ssl
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

LOGGER = logging.getLogger("coppice.show")
TIMEOUT_S = 5.0
NO_AUTHORITY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody: for addresses without TLS
SERVER_ERRORS = (httpx.HTTPError, PrefectHTTPStatusError)


def put_artifact(kind: str, data: str, key: str, description: str) -> None:
    """Writes an artifact of the flow run that this is called in, or brings it up to date.

    Args:
        kind: ``markdown`` or ``table``.
        data: Markdown, or rows as JSON.
        key: lowercase letters, digits, dashes.
        description: tells those of one key apart.
    """
    context = TaskRunContext.get() or FlowRunContext.get()
    assert context is not None  # the caller has looked
    client = context.client
    assert isinstance(client, SyncPrefectClient)
    try:
        _put(client, kind, data, key, description)  # this client has answered before and is patient for a minute
    except SERVER_ERRORS as error:
        LOGGER.warning(f"{key} ({description}) is not shown: {type(error).__name__}")


def put_progress(percent: float, key: str, description: str, known: UUID | None) -> UUID | None:
    """Writes a bar, or moves the one of the id `known`; its id, None when it could not be shown.

    A search waits for this, so a server that does not answer is asked just once.
    """
    try:
        with get_client(httpx_settings=_impatient(), sync_client=True) as client:
            if known is None:
                return _put(client, "progress", percent, key, description)
            client.update_artifact(known, ArtifactUpdate(data=percent))
    except SERVER_ERRORS as error:
        LOGGER.warning(f"progress of {description} is not shown: {type(error).__name__}")
        return None
    return known


def _impatient() -> dict[str, Any]:
    """Settings of a client of its own, which waits for no server.

    By itself each would read all the certificates that there are: two thirds of what showing a bar costs.
    """
    is_plain = (PREFECT_API_URL.value() or "").startswith("http://")
    return {"timeout": TIMEOUT_S, **({"verify": NO_AUTHORITY} if is_plain else {})}


def drop_doubles_of(context: FlowRunContext) -> None:
    """Keeps of a flow run's artifacts with one key and description the one written last."""
    assert context.flow_run is not None
    client = context.client
    assert isinstance(client, SyncPrefectClient)
    mine = ArtifactFilter(
        key=ArtifactFilterKey(exists_=True), flow_run_id=ArtifactFilterFlowRunId(any_=[context.flow_run.id])
    )
    try:
        found: list[Artifact] = []
        while page := client.read_artifacts(artifact_filter=mine, sort=ArtifactSort.ID_DESC, offset=len(found)):
            found += page
        kept = {(artifact.key, artifact.description): artifact.id for artifact in sorted(found, key=_last_written)}
        for artifact in found:
            if artifact.id not in kept.values():
                client.delete_artifact(artifact.id)
    except SERVER_ERRORS as error:
        LOGGER.warning(f"artifacts may be shown twice: {type(error).__name__}")


def _last_written(artifact: Artifact) -> datetime:
    assert artifact.updated is not None  # of what a server has sent
    return artifact.updated


def _put(client: SyncPrefectClient, kind: str, data: str | float, key: str, description: str) -> UUID:
    flow_run_id, task_run_id = _run_ids()
    if flow_run_id is not None:
        of_run = ArtifactFilterFlowRunId(any_=[flow_run_id])
        of_key = ArtifactFilter(key=ArtifactFilterKey(any_=[key]), flow_run_id=of_run)
        for artifact in client.read_artifacts(artifact_filter=of_key):
            if artifact.description == description:
                client.update_artifact(artifact.id, ArtifactUpdate(data=data))
                return artifact.id
    new = ArtifactCreate(
        type=kind, key=key, description=description, data=data, task_run_id=task_run_id, flow_run_id=flow_run_id
    )
    return client.create_artifact(new).id


def _run_ids() -> tuple[UUID | None, UUID | None]:
    """The flow run and the task run that this is called in."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    if task is not None:
        return task.task_run.flow_run_id, task.task_run.id
    return flow.flow_run.id if flow is not None and flow.flow_run is not None else None, None
