from __future__ import annotations

import json
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from server_fixtures import free_port

from tasks.runtime.artifacts import drop_doubles, show_markdown, show_progress, show_table

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


def test_a_stage_that_runs_again_brings_its_artifacts_up_to_date() -> None:
    @task
    def show(attempt: int) -> UUID:
        show_markdown(f"attempt {attempt}", key="audit", description="Iteration 1")
        show_table([{"attempt": attempt}], key="scores", description="Iteration 1")
        show_progress(50.0 * attempt, key="search-1", description="search 1", known=None)
        context = TaskRunContext.get()
        assert context is not None
        assert context.task_run.flow_run_id is not None
        return context.task_run.flow_run_id

    @task
    def show_next() -> None:
        show_markdown("another", key="audit", description="Iteration 2")

    @flow
    def retried() -> UUID:
        show_markdown("attempt 1", key="champion", description="none")  # outside the tasks
        show(1)
        show_next()
        show_markdown("attempt 2", key="champion", description="none")
        return show(2)

    with get_client(sync_client=True) as client:
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[retried()]))
        shown = {(a.key, a.description): a.data for a in client.read_artifacts(artifact_filter=mine)}
        assert len(client.read_artifacts(artifact_filter=mine)) == 5
    assert json.loads(str(shown.pop(("scores", "Iteration 1")))) == [{"attempt": 2}]
    assert shown == {
        ("audit", "Iteration 1"): "attempt 2",
        ("audit", "Iteration 2"): "another",
        ("champion", "none"): "attempt 2",
        ("search-1", "search 1"): 100.0,
    }


def test_what_was_sent_twice_is_dropped() -> None:
    @flow
    def doubled() -> UUID:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        for data in ("first", "second"):  # as a client does whose first request was answered too late
            with get_client(sync_client=True) as client:
                client.create_artifact(
                    ArtifactCreate(key="audit", description="1", data=data, flow_run_id=context.flow_run.id)
                )
        show_markdown("once", key="audit", description="2")
        drop_doubles()
        return context.flow_run.id

    with get_client(sync_client=True) as client:
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[doubled()]))
        assert sorted(str(a.data) for a in client.read_artifacts(artifact_filter=mine)) == ["once", "second"]


def test_a_server_that_does_not_answer_stops_nothing() -> None:
    @task
    def work() -> UUID | None:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
            return show_progress(1.0, key="x", description="x", known=None)

    @flow
    def goes_on() -> UUID | None:
        return work()

    assert goes_on() is None


def test_outside_a_flow_nothing_is_shown() -> None:
    show_markdown("x", key="x", description="x")
    assert show_progress(1.0, key="x", description="x", known=None) is None
