"""Traces and the number of requests, in a database and on a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from record_fixtures import make_record
from tree_fixtures import make_tree

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.tracking import IterationContents, Tracker, tracking_uri
from pipeline_lib.tracking.tree_traces import TreeTrace, trace_tree
from pipeline_lib.types import NO_PARENT, Outcome, Problem

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]
CURVE = [("train/update/loss", update, 1.0 / update) for update in range(1, 301)]


def make_trace(number: int) -> TreeTrace:
    problem = Problem(problem_id=f"d/train/{number}", question=f"question {number}", answer="4", dataset="d")
    rows = [(NO_PARENT, 4, 2.0), (0, 3, 2.0), (1, 2, 2.0, Outcome.CORRECT), (1, 1, 0.0, Outcome.WRONG)]
    return trace_tree(make_tree(*rows, problem_id=problem.problem_id), problem)


@pytest.fixture(params=["database", "server"])
def settings(request: pytest.FixtureRequest, new_home: Callable[[], Path]) -> Settings:
    uri = request.getfixturevalue("mlflow_uri") if request.param == "server" else None
    return Settings(home=new_home(), tracking_uri=uri)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of a server."""
    urls: list[str] = []
    original = requests.Session.request

    def counted(self: requests.Session, method: str, url: str, *arguments: Any, **named: Any) -> Any:
        urls.append(f"{method} {url}")
        return original(self, method, url, *arguments, **named)

    monkeypatch.setattr(requests.Session, "request", counted)
    return urls


def test_an_iteration_has_its_traces_once_however_often_it_is_logged(
    settings: Settings, sent: list[str], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    (tmp_path / "adapter_config.json").write_text("{}")
    record, base = make_record(1), make_record(0).policy

    def log(num_traces: int) -> str:
        tracker = Tracker.open(settings, run_key="run", run_name="run", config=PipelineConfig())
        traces = [make_trace(number) for number in range(num_traces)]
        return tracker.log_iteration(
            record,
            IterationContents(
                curves=CURVE, traces=traces, adapter=tmp_path, parent=base, texts={"figures.html": "<p>"}
            ),
        )

    run_id = log(1)  # killed after the first trace
    assert log(3) == run_id
    num_sent = len(sent)
    assert log(3) == run_id
    assert len(sent) - num_sent <= 20  # nothing is new, and 360 points are not asked for one by one
    if settings.tracking_uri:
        assert num_sent <= 60
    client = MlflowClient(tracking_uri=tracking_uri(settings))
    found = client.search_traces(locations=["1"], run_id=run_id, order_by=["timestamp_ms DESC"])
    assert [trace.info.request_preview for trace in found] == ["question 0", "question 1", "question 2"]
    assert {trace.info.response_preview for trace in found} == {"2 of 4 rollouts right"}
    assert found[0].info.tags["coppice.problem_id"] == "d/train/0"
    spans = {span.name: span for span in found[0].data.spans}
    assert list(spans) == ["d/train/0", "step 1", "✓ step 2", "✗ step 3"]
    assert spans["✓ step 2"].parent_id == spans["✗ step 3"].parent_id == spans["step 1"].span_id
    assert spans["step 1"].outputs == {"visits": 3, "value": 0.6667, "outcome": "open"}
    assert spans["step 1"].inputs == {"step": "step 1"}
    assert [span.status.status_code.value for span in spans.values()] == ["OK", "OK", "OK", "ERROR"]
    points = client.get_metric_history(run_id, "train/update/loss")
    assert [point.step for point in points] == list(range(1, 301))
