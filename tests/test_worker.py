"""Deployments on real servers: registered, scheduled, started with parameters, kept apart, cancelled."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from served_home import ENDED, LONG, ServedHome, processes_of, small_served

from deployments.service.worker import register_deployments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # most of it is patience with a busy machine

WEEKLY, NIGHTLY = "self-training", "evaluate-champion"


def mlflow_client(served: ServedHome) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=served.mlflow, registry_uri=served.mlflow)


def switch(served: ServedHome, name: str, **changes: Any) -> None:
    """What the UI's switch beside a schedule sends."""
    deployment = served.deployment(name)
    [schedule] = deployment["schedules"]
    status, _ = served.ask(f"/deployments/{deployment['id']}/schedules/{schedule['id']}", changes, "PATCH")
    assert status == 204


def schedules(served: ServedHome) -> dict[str, bool]:
    found = [item for name in (WEEKLY, NIGHTLY) for item in served.deployment(name)["schedules"]]
    return {item["slug"]: item["active"] for item in found}


def num_flow_processes(served: ServedHome) -> int:
    return sum(" -m prefect.engine" in line for line in processes_of(served.home))


@pytest.fixture(scope="module")
def scheduled_run(served: ServedHome) -> Any:
    """A run that nobody asked for: its schedule was switched on and came due."""
    soon = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
    switch(served, WEEKLY, active=True, schedule={"interval": 86400, "anchor_date": soon})
    mine = {
        "flow_runs": {"deployment_id": {"any_": [served.deployment(WEEKLY)["id"]]}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    deadline = time.monotonic() + 60
    while not (found := [run for run in served.ask("/flow_runs/filter", mine)[1] if run["auto_scheduled"]]):
        assert time.monotonic() < deadline, served.log("prefect")
        time.sleep(0.2)
    run = served.wait_for(found[0]["id"], "COMPLETED")
    switch(served, WEEKLY, active=False, schedule={"cron": "0 1 * * 6", "timezone": "UTC"})
    return run


def test_a_schedule_that_is_switched_on_fires(served: ServedHome, scheduled_run: Any) -> None:
    assert scheduled_run["auto_scheduled"]
    assert scheduled_run["name"] == "tiny-seed-0"
    assert set(scheduled_run["tags"]) >= {"coppice", "self-training"}
    [tracked] = mlflow_client(served).search_runs(["1"], f"tags.`prefect.flow_run_id` = '{scheduled_run['id']}'")
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["problems.num_problems"] == "16"


def test_the_form_has_descriptions_and_bounds(served: ServedHome) -> None:
    for name in (WEEKLY, NIGHTLY):
        deployment = served.deployment(name)
        schema = deployment["parameter_openapi_schema"]
        assert list(schema["properties"]) == ["config"]
        dial = schema["definitions"]["SearchConfig"]["properties"]["num_simulations"]
        assert (dial["minimum"], dial["description"]) == (1, "Rollouts per problem: the headline setting. Our choice.")
        assert deployment["parameters"]["config"] == small_served().model_dump(mode="json")
        assert "coppice" in deployment["tags"]
        assert deployment["description"]
        limit = (
            deployment["global_concurrency_limit"]["limit"],
            deployment["concurrency_options"]["collision_strategy"],
        )
        assert limit == (1, "CANCEL_NEW")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_iterations": 0}, "0 is less than the minimum of 1"),
        ({"train": {"kl_beta": -1.0}}, "-1.0 is less than the minimum of 0"),
        ({"train": {"kl_betta": 1.0}}, "'kl_betta' was unexpected"),
    ],
)
def test_bad_parameters_are_refused(served: ServedHome, change: dict[str, Any], reason: str) -> None:
    status, answer = served.start(WEEKLY, change)
    assert status == 409
    assert reason in answer["detail"]


def test_a_new_schedule_is_as_the_file_says_and_an_old_one_as_it_was_switched(
    served: ServedHome, scheduled_run: Any
) -> None:
    assert schedules(served) == {"weekly": False, "nightly": True}
    switch(served, NIGHTLY, active=False)
    switch(served, WEEKLY, active=True)
    with served.inside():
        register_deployments(small_served())
    assert schedules(served) == {"weekly": True, "nightly": False}
    switch(served, WEEKLY, active=False)


def test_runs_on_one_device_do_not_overlap(served: ServedHome, scheduled_run: Any) -> None:
    client = mlflow_client(served)
    client.set_registered_model_alias("coppice-tiny", "champion", "1")
    _, long = served.start(WEEKLY, small_served(*LONG).model_dump(mode="json"))
    served.wait_for(long["id"], "RUNNING")

    _, other = served.start(NIGHTLY, small_served().model_dump(mode="json"))
    _, second = served.start(WEEKLY, small_served().model_dump(mode="json"))
    refused = served.wait_for(second["id"], "CANCELLED")
    assert refused["state"]["message"] == "Deployment concurrency limit reached."
    assert served.run(other["id"])["state"]["type"] == "SCHEDULED"
    tracked = {"tags": f"tags.`prefect.flow_run_id` = '{long['id']}'"}
    deadline = time.monotonic() + 60
    while not (runs := client.search_runs(["1"], tracked["tags"])):
        assert time.monotonic() < deadline
        time.sleep(0.2)

    assert served.run(long["id"])["state"]["type"] == "RUNNING"
    served.ask(f"/flow_runs/{long['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    served.wait_for(long["id"], "CANCELLED")
    assert client.get_run(runs[0].info.run_id).info.status == "KILLED"

    at_once = {0}
    while served.run(other["id"])["state"]["type"] not in ENDED:
        at_once.add(num_flow_processes(served))
        time.sleep(0.5)
    assert max(at_once) == 1
    measured = served.wait_for(other["id"], "COMPLETED")
    assert measured["name"] == "tiny-champion"
    [run] = client.search_runs(["1"], "attributes.run_name = 'champion v1'")
    assert run.data.tags["coppice.evaluated_version"] == "coppice-tiny/1"
    assert set(run.data.metrics) >= {"eval/tiny-word/accuracy", "eval/tiny-algebra/accuracy"}


def test_a_night_without_news_adds_nothing(served: ServedHome, scheduled_run: Any) -> None:
    from flows.evaluate_champion import evaluate_champion

    client = mlflow_client(served)
    client.set_registered_model_alias("coppice-tiny", "champion", "1")
    with served.inside():
        reports = [evaluate_champion(small_served()) for _ in range(2)]
    assert reports[0] == reports[1]
    assert {report.dataset for report in reports[0]} == {"tiny-word", "tiny-algebra"}
    [run] = client.search_runs(["1"], "attributes.run_name = 'champion v1'")
    assert len(client.get_metric_history(run.info.run_id, "eval/tiny-word/accuracy")) == 1


def test_without_a_champion_the_run_says_so(served: ServedHome) -> None:
    from flows.evaluate_champion import evaluate_champion

    with served.inside():
        state = evaluate_champion(small_served("preset=unheard-of"), return_state=True)
    assert (state.is_completed(), state.name) == (True, "No champion")
    assert "coppice-unheard-of has no champion yet" in str(state.message)
