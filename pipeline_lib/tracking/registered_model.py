"""The registered model of a preset: its name, its versions, and the one that is champion.

What a version's tags mean, and which version becomes champion, is decided in `pipeline_lib.registry`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import Field

from pipeline_lib.config import Settings, sqlite_file
from pipeline_lib.registry import Registry
from pipeline_lib.registry.lineage import BASE_MODEL, BASE_REVISION, POLICY_ID
from pipeline_lib.tracking.client import import_mlflow, open_client, tracking_uri
from pipeline_lib.tracking.outage import ErrorTranslatingClient, TrackingError
from pipeline_lib.types import Record

MODEL_PREFIX = "coppice-"


class Champion(Record):
    """The registered version that the alias `champion` names."""

    model: str = Field(description="Name of the registered model.")
    version: str
    policy_id: str
    iteration: int = Field(description="The one that made it.")
    base_model: str = Field(description="The model that it was trained on.")
    revision: str | None = Field(None, description="Hub revision of the base model.")
    source: str = Field(description="URI of the folder that holds its files.")


def model_name(preset: str) -> str:
    """The registered model of a preset."""
    return f"{MODEL_PREFIX}{preset}"


def open_registry(settings: Settings, preset: str) -> Registry:
    """The registered versions of a preset's adapters."""
    return guarded_registry(settings, open_client(settings), model_name(preset))


def guarded_registry(settings: Settings, client: Any, name: str) -> Registry:
    """The versions of a registered model, its aliases moved by one process of this machine at a time."""
    return Registry(client, name, guard=lambda: _one_at_a_time(settings))


def _one_at_a_time(settings: Settings) -> AbstractContextManager[Any]:
    """A lock beside the database where that is a file; a server keeps nobody out."""
    database = sqlite_file(tracking_uri(settings))
    return nullcontext() if database is None else FileLock(f"{database}.lock")


def registered_champion(settings: Settings, preset: str) -> Champion | None:
    """The version that is champion of a preset; None before the first promotion.

    Raises:
        TrackingError: somebody gave the alias to a version that no run registered.
    """
    client, name = open_client(settings), model_name(preset)
    models = client.search_registered_models(f"name = '{name}'")
    number = models[0].aliases.get("champion") if models else None
    if number is None:
        return None
    version = client.get_model_version(name, number)
    if missing := {POLICY_ID, "coppice.iteration", BASE_MODEL} - version.tags.keys():
        raise TrackingError(
            f"registry: {name} version {number}, its champion, has no tag {min(missing)}: no run registered it; "
            "move the alias to one that a run did with `coppice promote`"
        )
    return Champion(
        model=name,
        version=str(number),
        policy_id=version.tags[POLICY_ID],
        iteration=int(version.tags["coppice.iteration"]),
        base_model=version.tags[BASE_MODEL],
        revision=version.tags.get(BASE_REVISION),
        source=version.source,
    )


def download_champion(settings: Settings, champion: Champion, folder: Path) -> Path:
    """Copies a version's files, adapter or full weights, to somewhere below `folder`; returns where they lie."""
    uri = tracking_uri(settings)
    copied = ErrorTranslatingClient(import_mlflow().artifacts, uri).download_artifacts(
        artifact_uri=champion.source, dst_path=str(folder), tracking_uri=uri
    )
    return Path(copied)
