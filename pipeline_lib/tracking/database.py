"""MLflow's database read without MLflow, where it is a file: a look takes a millisecond, MLflow's import seconds.

Nothing is ever written here. Where the file cannot be read, or is not laid out as expected, MLflow itself is asked.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

from pipeline_lib.config import Settings, sqlite_file
from pipeline_lib.registry.versions import CHAMPION
from pipeline_lib.tracking.client import tracking_uri

RUN = "select 1 from runs where run_uuid = ? and status = 'FINISHED' and lifecycle_stage = 'active'"
TAGS = "select key, value from tags where run_uuid = ?"
ALIAS = "select version from registered_model_aliases where name = ? and alias = ?"


class UnreadableError(LookupError):
    """The tracking database is no file of this machine, or not one that this module understands."""


def finished_tags(settings: Settings, run_id: str) -> dict[str, str] | None:
    """The tags of a run that is there and ended well; None of any other.

    Raises:
        UnreadableError: only MLflow can tell.
    """
    if not _select(settings, RUN, run_id):
        return None
    return {str(name): str(value) for name, value in _select(settings, TAGS, run_id)}


def champion_version(settings: Settings, model: str) -> str | None:
    """The version of a registered model that the alias `champion` names; None where there is none.

    Raises:
        UnreadableError: only MLflow can tell.
    """
    found = _select(settings, ALIAS, model, CHAMPION)
    return str(found[0][0]) if found else None


def _select(settings: Settings, query: str, *values: str) -> list[Any]:
    file = sqlite_file(tracking_uri(settings))
    if file is None:
        raise UnreadableError("no file")
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return database.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise UnreadableError(str(error)) from error
