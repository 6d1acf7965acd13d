"""Artifacts for the Prefect UI, where there is a flow run to show them in; elsewhere they are left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from tasks.orchestration.context import flow_context, task_context


def show_markdown(text: str, *, key: str, description: str) -> None:
    """Shows a text; outside a flow it does nothing.

    Args:
        text: Markdown.
        key: lowercase letters, digits, dashes; artifacts of one key are shown as versions of each other.
        description: tells those of one flow run apart (`Iteration 2`).
    """
    _show("markdown", text, key, description)


def show_table(rows: Sequence[Mapping[str, Any]], *, key: str, description: str) -> None:
    """Shows rows of equal columns; outside a flow it does nothing. See `show_markdown`."""
    _show("table", json.dumps(list(rows)), key, description)


def show_progress(percent: float, *, key: str, description: str, known: UUID | None) -> UUID | None:
    """Shows a bar and returns its id, to be handed in as `known` the next time; None when it could not be shown."""
    if task_context() is None:
        return None
    from tasks.orchestration.artifact_writer import put_progress

    return put_progress(percent, key, description, known)


def drop_doubles() -> None:
    """Keeps of the artifacts with one key and description the one written last; outside a flow it does nothing."""
    context = flow_context()
    if context is None or context.flow_run is None:
        return
    from tasks.orchestration.artifact_writer import drop_doubles_of

    drop_doubles_of(context)


def _show(kind: str, data: str, key: str, description: str) -> None:
    if task_context() is None and flow_context() is None:
        return
    from tasks.orchestration.artifact_writer import put_artifact

    put_artifact(kind, data, key, description)
