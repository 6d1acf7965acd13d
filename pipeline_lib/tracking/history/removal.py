"""Runs leave MLflow for good: their rows, artifacts, traces, logged models and versions that nobody needs.

`mlflow gc` does this to whatever anybody has deleted; here it is done to named runs, and a version that a deployment
loads, or that a rollback can go back to, keeps its files. A run is marked first, so that one whose removal was killed
is found and finished by the next.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.config import Settings, sqlite_file
from pipeline_lib.registry import Registry
from pipeline_lib.tracking.client import (
    find_experiment,
    import_mlflow,
    open_client,
    open_database,
    open_tracing_client,
    tracking_uri,
)
from pipeline_lib.tracking.links import local_folder
from pipeline_lib.tracking.registered_model import MODEL_PREFIX, guarded_registry

PRUNED = "coppice.pruned"
RUN_IS_GONE = "NOT IN (SELECT run_uuid FROM runs)"
LEFT_BEHIND = (  # by MLflow, which removes runs alone; a version's own row stays, so that no number comes twice
    f"DELETE FROM inputs WHERE destination_type = 'RUN' AND destination_id {RUN_IS_GONE}",
    f"DELETE FROM inputs WHERE source_type = 'RUN_OUTPUT' AND source_id {RUN_IS_GONE}",
    "DELETE FROM input_tags WHERE input_uuid NOT IN (SELECT input_uuid FROM inputs)",
    "DELETE FROM datasets WHERE dataset_uuid NOT IN (SELECT source_id FROM inputs) AND dataset_uuid NOT IN"
    " (SELECT dataset_uuid FROM logged_model_metrics WHERE dataset_uuid IS NOT NULL)",
    "DELETE FROM model_version_tags WHERE (name, version) IN"
    " (SELECT name, version FROM model_versions WHERE current_stage = 'Deleted_Internal')",
)
MAX_TRACES, MAX_MODELS = 100, 1000  # that MLflow takes, or gives, in one request


@dataclass(frozen=True, slots=True)
class TrackedFiles:
    """What some runs keep in MLflow.

    Args:
        folders: of their artifacts and logged models, those left out that a needed version has.
        models: ids of these logged models.
        versions: (registered model, version) of those that nobody needs.
    """

    folders: tuple[Path, ...]
    models: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]


def tracked_files(settings: Settings, run_ids: Collection[str]) -> TrackedFiles:
    """What these runs keep, and no needed version does."""
    client = open_client(settings)
    needed, dispensable = _versions(settings, client)
    models = [
        model
        for model in _logged_models(client, find_experiment(client, settings))
        if model.source_run_id in run_ids and not _is_needed(model.artifact_location, needed, model.model_id)
    ]
    places = [client.get_run(run_id).info.artifact_uri for run_id in run_ids]
    places = [place for place in places if not _is_needed(place, needed)]
    places += [model.artifact_location for model in models]
    folders = [folder.parent for place in places if (folder := local_folder(place)) is not None]
    return TrackedFiles(
        folders=tuple(folder for folder in folders if folder.is_dir()),
        models=tuple(model.model_id for model in models),
        versions=tuple(version for version, run_id in dispensable.items() if run_id in run_ids),
    )


def _is_needed(place: str, needed: Collection[str], model_id: str | None = None) -> bool:
    """Whether a version's files lie in a folder of artifacts; people register them also under names of their own."""
    return any(source.startswith(place) or source == f"models:/{model_id}" for source in needed)


def remove_runs(settings: Settings, run_ids: Collection[str]) -> None:
    """Removes runs from a local database, with their files; the parent's id comes first in `run_ids`."""
    client = open_client(settings)
    for run_id in run_ids:
        client.set_tag(run_id, PRUNED, "true")
    kept = tracked_files(settings, run_ids)
    for name, version in kept.versions:
        client.delete_model_version(name, version)
    for run_id in reversed(list(run_ids)):  # the parent last: it leads to the others
        _remove_traces(settings, client, run_id)
    for folder in kept.folders:
        shutil.rmtree(folder, ignore_errors=True)
    database = open_database(settings)
    for model in kept.models:
        client.delete_logged_model(model)
        database._hard_delete_logged_model(model)
    for run_id in reversed(list(run_ids)):
        client.delete_run(run_id)
        database._hard_delete_run(run_id)


def half_removed(settings: Settings) -> list[str]:
    """Ids of runs whose removal was killed, children before parents."""
    client = open_client(settings)
    experiment = find_experiment(client, settings)
    everywhere = import_mlflow().entities.ViewType.ALL
    found = client.search_runs([experiment], f"tags.`{PRUNED}` = 'true'", run_view_type=everywhere, max_results=1000)
    for run in found:
        if run.info.lifecycle_stage == "deleted":
            client.restore_run(run.info.run_id)
    return [str(run.info.run_id) for run in found]


def compact_database(settings: Settings) -> None:
    """Gives the room of removed runs back to the disk, with the rows that they alone were the reason of.

    Left out while somebody else works on the database, or where another version of MLflow keeps it otherwise.
    """
    file = sqlite_file(tracking_uri(settings))
    assert file is not None  # only local databases are pruned
    try:
        with closing(sqlite3.connect(file, timeout=5.0)) as connection:
            with connection:  # all of them or none
                for statement in LEFT_BEHIND:
                    connection.execute(statement)
            connection.execute("VACUUM")
    except sqlite3.OperationalError:  # busy: the next time
        return


def _versions(settings: Settings, client: Any) -> tuple[set[str], dict[tuple[str, str], str]]:
    """Where the files of needed versions lie; and (model, version) of the others, with the run that made each."""
    needed: set[str] = set()
    dispensable: dict[tuple[str, str], str] = {}
    for model in client.search_registered_models(max_results=MAX_MODELS):
        registry: Registry = guarded_registry(settings, client, model.name)
        wanted = registry.needed() if model.name.startswith(MODEL_PREFIX) else None  # all of somebody else's
        for version in client.search_model_versions(f"name = '{model.name}'"):
            if wanted is None or str(version.version) in wanted:
                needed.add(str(version.source))
            else:
                dispensable[model.name, str(version.version)] = str(version.run_id)
    return needed, dispensable


def _logged_models(client: Any, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_logged_models([experiment], page_token=token)
        yield from page
        if not (token := page.token):
            return


def _remove_traces(settings: Settings, client: Any, run_id: str) -> None:
    experiment = find_experiment(client, settings)
    tracing = open_tracing_client(settings)
    mine = f"request_metadata.`mlflow.sourceRun` = '{run_id}'"
    while found := tracing.search_traces(
        filter_string=mine, include_spans=False, locations=[experiment], max_results=MAX_TRACES
    ):
        tracing.delete_traces(experiment_id=experiment, trace_ids=[trace.info.trace_id for trace in found])
