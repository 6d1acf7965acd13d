"""The registered model of a preset: its name, its versions, and the one that is champion.

What a version's tags mean, and which version becomes champion, is decided in `pipeline_lib.registry`.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock
from pydantic import Field

from pipeline_lib.config import Settings, sqlite_file
from pipeline_lib.policy.export.adapter_files import put_back
from pipeline_lib.registry import Registry
from pipeline_lib.registry.lineage import BASE_MODEL, BASE_REVISION, POLICY_ID
from pipeline_lib.registry.versions import CHAMPION
from pipeline_lib.tracking.client import import_mlflow, open_client, tracking_uri
from pipeline_lib.tracking.outage import ErrorTranslatingClient, TrackingError
from pipeline_lib.types import Record

MODEL_PREFIX = "coppice-"
MODELS = "models:/"
MODEL_URI = re.compile(r"models:/([\w.-]+)(?:@([\w.-]+)|/(\d+))")


class Champion(Record):
    """A registered version, as a rule the one that the alias `champion` names."""

    model: str = Field(description="Name of the registered model.")
    version: str
    policy_id: str
    iteration: int = Field(description="The one that made it.")
    base_model: str = Field(description="The model that it was trained on.")
    revision: str | None = Field(None, description="Hub revision of the base model.")
    source: str = Field(description="URI of the folder that holds its files.")
    tags: dict[str, str] = Field(default_factory=dict, description="Origin and scores, see `registry.lineage`.")


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
    number = _aliases(client, name).get(CHAMPION)
    return None if number is None else _read_version(client, name, number)


def registered_version(settings: Settings, uri: str) -> Champion:
    """The version that MLflow's address names: ``models:/coppice-tiny@champion`` or ``models:/coppice-tiny/3``.

    Raises:
        TrackingError: it is no such address, there is no such model, alias or version, or no run registered it.
    """
    address = MODEL_URI.fullmatch(uri)
    if address is None:
        raise TrackingError(f"{uri}: a registered model is named as {MODELS}NAME@champion or {MODELS}NAME/VERSION")
    name, alias, number = address.groups()
    client = open_client(settings)
    found = client.search_model_versions(f"name = '{name}'")
    aliases, numbers = _aliases(client, name), sorted(int(version.version) for version in found)
    number = number or aliases.get(alias)
    if number is None or int(number) not in numbers:
        known = ", ".join([*(f"@{known}" for known in sorted(aliases)), *map(str, numbers)])
        raise TrackingError(
            f"registry: {uri} is not there; {name} has {known or 'no version: `coppice run` makes them'}"
        )
    return _read_version(client, name, number)


def download_champion(settings: Settings, champion: Champion, folder: Path) -> Path:
    """Copies a version's files, as training wrote them, to somewhere below `folder`; returns where they lie."""
    uri = tracking_uri(settings)
    copied = ErrorTranslatingClient(import_mlflow().artifacts, uri).download_artifacts(
        artifact_uri=champion.source, dst_path=str(folder), tracking_uri=uri
    )
    return put_back(Path(copied))


def version_folder(settings: Settings, champion: Champion, copies: Path) -> Path:
    """Where a version's files can be read: where the registry keeps them, or a copy of those of a server elsewhere.

    Args:
        settings: where the registry is.
        champion: the version.
        copies: folder of the copies, each under its policy's id.
    """
    kept = urlsplit(champion.source)
    if kept.scheme == "file" and (folder := Path(url2pathname(kept.path))).is_dir():
        return folder
    copy = copies / champion.policy_id
    if not copy.is_dir():
        copies.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=copies) as folder_of_copy:
            download_champion(settings, champion, Path(folder_of_copy)).rename(copy)
    return copy


def _aliases(client: Any, name: str) -> dict[str, str]:
    models = client.search_registered_models(f"name = '{name}'")
    return {alias: str(number) for alias, number in models[0].aliases.items()} if models else {}


def _read_version(client: Any, name: str, number: str) -> Champion:
    version = client.get_model_version(name, number)
    if missing := {POLICY_ID, "coppice.iteration", BASE_MODEL} - version.tags.keys():
        raise TrackingError(
            f"registry: {name} version {number}, without a tag {min(missing)}, was registered by no run; "
            "if it is champion, move the alias to one that a run did with `coppice promote`"
        )
    return Champion(
        model=name,
        version=str(number),
        policy_id=version.tags[POLICY_ID],
        iteration=int(version.tags["coppice.iteration"]),
        base_model=version.tags[BASE_MODEL],
        revision=version.tags.get(BASE_REVISION),
        source=version.source,
        tags=dict(version.tags),
    )
