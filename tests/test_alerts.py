"""Alerts: automations on a real server that call a real HTTP server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from record_fixtures import make_record
from served_home import ServedHome, small_served

from deployments.service.alerts import install_alerts
from pipeline_lib.config import ConfigError
from pipeline_lib.types import GateDecision, Promotion, RunResult

pytestmark = pytest.mark.timeout(900)

NAMES = ["coppice run failed", "coppice audit stop", "coppice new champion"]


class Listener:
    """An HTTP server that remembers what it was told."""

    def __init__(self) -> None:
        self.messages: list[dict[str, str]] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                listener.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def wait_for(self, subject: str) -> dict[str, str]:
        """The message with that in its subject."""
        deadline = time.monotonic() + 60
        while not (found := [message for message in self.messages if subject in message["subject"]]):
            assert time.monotonic() < deadline, self.messages
            time.sleep(0.1)
        return found[0]


@pytest.fixture(scope="module")
def listener(served: ServedHome) -> Iterator[Listener]:
    """Who is told: `coppice alerts` was given its address in a block."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    listener = Listener()
    with served.inside():
        block = CustomWebhookNotificationBlock(
            name="team",
            url=f"http://127.0.0.1:{listener.server.server_port}",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
        )
        block.save("team")
        assert install_alerts("custom-webhook/team") == NAMES
    yield listener
    listener.server.shutdown()


def promoted(tracking_run: str = "run-1") -> RunResult:
    records = (make_record(0, 0.5), make_record(1, 0.75))
    return RunResult(
        records=records,
        decision=GateDecision(proceed=False, champion=1, reason="a gain of 25 points"),
        stopped_because="num_iterations reached",
        wall_s=1.0,
        tracking_run=tracking_run,
        promotion=Promotion(promoted=True, version="7", previous="4", reason="75 of 100 beat 50 of 100"),
    )


def test_outside_a_flow_nothing_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.reporting import announce

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("emitted")

    monkeypatch.setattr("prefect.events.emit_event", fail)
    announce.announce_result(small_served(), promoted())


@pytest.mark.slow
def test_installing_twice_makes_no_second_automation(served: ServedHome, listener: Listener) -> None:
    with served.inside():
        install_alerts("custom-webhook/team")
        with pytest.raises(ConfigError, match="no block 'slack-webhook/nobody'"):
            install_alerts("slack-webhook/nobody")
    _, automations = served.ask("/automations/filter", {})
    assert sorted(item["name"] for item in automations) == sorted(NAMES)
    assert all(item["enabled"] for item in automations)


@pytest.mark.slow
def test_a_failed_run_is_told(served: ServedHome, listener: Listener) -> None:
    from flows.self_training import self_training

    with served.inside(), pytest.raises(Exception, match="no-such-file"):
        self_training(small_served("problems.dataset=file", "problems.path=/no-such-file.jsonl"))
    message = listener.wait_for("self-training tiny-seed-0: Failed")
    assert "no-such-file" in message["body"]
    assert f"{served.prefect}/runs/flow-run/" in message["body"]


@pytest.mark.slow
def test_an_audit_stop_is_told(served: ServedHome, listener: Listener) -> None:
    from flows.self_training import self_training

    with served.inside():
        result = self_training(small_served("audit.min_informative_share=1.0", "audit.remedy=false"))
    message = listener.wait_for("coppice-tiny: stopped by the audit of iteration 1")
    audit = result.records[-1].audit
    assert audit is not None
    assert message["body"].startswith(f"{audit.reason}\n{audit.advice}\n{served.prefect}/runs/flow-run/")


@pytest.mark.slow
def test_a_new_champion_is_told_once(served: ServedHome, listener: Listener) -> None:
    from prefect import flow

    from tasks.reporting.announce import announce_result

    @flow
    def ends_twice() -> None:  # and so does a later run of the same configuration, which comes to the same version
        for run in ("run-1", "run-1", "run-2"):
            announce_result(small_served(), promoted(run))

    with served.inside():
        ends_twice()
    message = listener.wait_for("coppice-tiny version 7 is champion")
    assert message["body"].startswith("75 of 100 beat 50 of 100\ntiny-word validation 75.0%, tiny-word test 75.0%\n")
    time.sleep(3)  # the second would come at the heels of the first
    assert len([item for item in listener.messages if "version 7" in item["subject"]]) == 1
