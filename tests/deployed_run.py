"""One flow run of a deployment, driven as the Prefect UI drives it: start, look, Retry."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Scheduled
from server_fixtures import POOL, TIME_LIMIT_S, wait_until

from pipeline_lib.config import PipelineConfig

ROOT = Path(__file__).resolve().parents[1]
ENDED = ("Completed", "Failed", "Crashed", "Cancelled")
PAGE = 200  # the server's own limit


class DeployedRun:
    """A flow run in a home of its own, with stages that can be told to fail.

    Args:
        api: of the Prefect server.
        home: becomes its COPPICE_HOME; faults lie beside the store, see `faulty_flow`.
        config: its parameter.
        environment: more variables of its process.
        command: of its process, where that is not Prefect's own; see `warm_engine`.
    """

    def __init__(
        self, api: str, home: Path, config: PipelineConfig, environment: Mapping[str, str], *, command: str = ""
    ) -> None:
        self.api, self.home, self.faults = api, home, home / "faults"
        self.faults.mkdir()
        self.attempts = 1
        own = {**environment, "COPPICE_HOME": str(home), "COPPICE_TEST_FAULTS": str(self.faults)}
        with self._client() as client:
            run = client.create_flow_run_from_deployment(
                self._deploy(client),
                parameters={"config": config.model_dump(mode="json")},
                job_variables={"env": own} | ({"command": command} if command else {}),
                name=home.name,
            )
        self.id: UUID = run.id

    def fail(self, **stages: str) -> None:
        """What happens to the next commit of each stage: `raise`, `wait`, or `2 raise`."""
        for stage, what in stages.items():
            (self.faults / stage.replace("_", "-")).write_text(what)

    def state(self) -> str:
        return str(self._state()["name"])

    def message(self) -> str:
        return self._state()["message"] or ""

    def wait_for(self, *names: str) -> None:
        wait_until(lambda: self.state() in names, f"{self.home.name} is {names}")

    def wait_for_end(self) -> str:
        """Name of the state in which the run ended, once its process is gone too."""
        self.wait_for(*ENDED)
        wait_until(lambda: not self.process(), f"the process of {self.home.name} is gone")
        time.sleep(1.0)  # its worker may still report it
        return self.state()

    def wait_in(self, stage: str) -> int:
        """The process that waits in a stage that was told to."""
        file = self.faults / "waiting"  # one that was killed leaves it there

        def waiting() -> list[str]:
            return file.read_text().split() if file.exists() else []

        wait_until(lambda: waiting()[:1] == [stage] and len(waiting()) == 2, f"{stage} waits")
        return int(waiting()[1])

    def go_on(self, stage: str) -> None:
        (self.faults / stage).unlink()

    def retry(self) -> None:
        """What the UI's button Retry sends."""
        self.attempts += 1
        with self._client() as client:
            state = Scheduled(name="AwaitingRetry", message="Retry from the UI")
            assert client.set_flow_run_state(self.id, state).status.value == "ACCEPT"

    def tried(self) -> Counter[str]:
        """How often each stage came to its commit since this was last asked."""
        log = self.faults / "tried"
        stages = Counter(log.read_text().split()) if log.exists() else Counter[str]()
        log.unlink(missing_ok=True)
        return stages

    def set_crashed(self) -> None:
        """What a person does in the UI, Change state, with a run whose machine is gone."""
        with self._client() as client:
            client.set_flow_run_state(self.id, Crashed(message="its machine went down"), force=True)

    def task_runs(self, attempt: int) -> Counter[tuple[str, str]]:
        """(task run, final state) of one attempt."""
        with self._client() as client:
            mine = FlowRunFilter(id=FlowRunFilterId(any_=[self.id]))
            runs = [
                run
                for offset in range(0, 2000, PAGE)
                for run in client.read_task_runs(flow_run_filter=mine, limit=PAGE, offset=offset)
            ]
        return Counter((run.name, run.state_name) for run in runs if run.flow_run_run_count == attempt)

    def artifacts(self) -> Counter[tuple[str, str | None]]:
        """(key, description) of every artifact of the run; those without a key are Prefect's own, one per state."""
        with self._client() as client:
            mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[self.id]))
            found = client.read_artifacts(artifact_filter=mine)
        return Counter((artifact.key, artifact.description) for artifact in found if artifact.key)

    def process(self) -> int:
        """The process that runs the flow; 0 when none does."""
        file = self.faults / "process"
        pid = int(file.read_text()) if file.exists() else 0
        return pid if pid and psutil.pid_exists(pid) else 0

    def kill_process(self) -> None:
        os.kill(self.process(), signal.SIGKILL)

    def _client(self) -> SyncPrefectClient:
        with temporary_settings({PREFECT_API_URL: self.api}):
            return get_client(sync_client=True)

    def _state(self) -> dict[str, Any]:
        """As the server has it; without Prefect's client, the start of which costs more than the run's own second."""
        with urlopen(f"{self.api}/flow_runs/{self.id}", timeout=TIME_LIMIT_S) as answer:
            state: dict[str, Any] = json.load(answer)["state"]
        return state

    def _deploy(self, client: SyncPrefectClient) -> UUID:
        return client.create_deployment(
            flow_id=client.create_flow_from_name("self-training"),
            name="tests",
            work_pool_name=POOL,
            entrypoint="tests/faulty_flow.py:self_training",
            path=str(ROOT),
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        )
