"""A home with `coppice up` running in it, and its servers' answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from deployments.presets import preset
from pipeline_lib.config import PipelineConfig, apply_overrides

TIME_LIMIT_S = 240.0
SMALL = (
    "policy.backend=scripted",
    "num_iterations=1",
    "problems.num_problems=16",
    "problems.num_validation=8",
    "search.num_simulations=6",
    "evaluation.num_problems=8",
    "evaluation.num_samples=0",
    "train.num_epochs=1",
)
LONG = ("problems.num_problems=4000", "search.num_simulations=64")  # it is cancelled long before its end
IMPATIENT = {  # a server and a worker that look after their work every two seconds; more often locks SQLite
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "2",
}
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def small_served(*overrides: str) -> PipelineConfig:
    """What the served deployments run by default, changed by `overrides`."""
    return apply_overrides(preset("tiny"), [*SMALL, *overrides])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class ServedHome:
    """Where the servers are, and the environment that says so."""

    home: Path
    environment: Mapping[str, str]
    printed: str = ""

    @classmethod
    def at(cls, home: Path, **more: str) -> ServedHome:
        ports = {"COPPICE_PREFECT_PORT": str(free_port()), "COPPICE_MLFLOW_PORT": str(free_port())}
        return cls(home, {"COPPICE_HOME": str(home), **IMPATIENT, **ports, **more})

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.environment['COPPICE_PREFECT_PORT']}"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.environment['COPPICE_MLFLOW_PORT']}"

    def coppice(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`coppice`, as a shell runs it."""
        command = [sys.executable, "-m", "deployments.command.app", *arguments]
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Flows of this process use these servers."""
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: f"{self.prefect}/api"}):
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setenv("PREFECT_API_URL", f"{self.prefect}/api")
            patch.setenv("COPPICE_TRACKING_URI", self.mlflow)
            yield

    def ask(self, path: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
        """Status and answer of Prefect's API; asks again while its SQLite is locked, as Prefect's own clients do."""
        status, answer = self._ask(path, body, method)
        return self.ask(path, body, method) if status == 503 else (status, answer)

    def _ask(self, path: str, body: Any, method: str | None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.prefect}/api{path}", data, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=TIME_LIMIT_S) as answer:  # a locked SQLite holds an answer up for minutes
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except HTTPError as error:
            return error.code, json.loads(error.read())

    def deployment(self, name: str) -> Any:
        return self.ask(f"/deployments/name/{name}/{name}")[1]

    def start(self, name: str, config: Mapping[str, Any]) -> tuple[int, Any]:
        """Asks for a run as the UI's form does."""
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        return self.ask(path, {"parameters": {"config": dict(config)}})

    def run(self, run_id: str) -> Any:
        return self.ask(f"/flow_runs/{run_id}")[1]

    def wait_for(self, run_id: str, *types: str) -> Any:
        """The run, once its state is one of these, or has ended otherwise."""
        deadline = time.monotonic() + TIME_LIMIT_S
        while (run := self.run(run_id))["state"]["type"] not in types:
            assert run["state"]["type"] not in ENDED, (run["state"], self.log("worker"))
            assert time.monotonic() < deadline, (run["state"], self.log("worker"))
            time.sleep(0.5)
        return run

    def log(self, name: str) -> str:
        return (self.home / "servers" / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-4000:]


@contextmanager
def coppice_up(home: Path, **more: str) -> Iterator[ServedHome]:
    """`coppice up`, and `coppice down` at the end, after which nothing may be left."""
    served = ServedHome.at(home, **more)
    settings = [argument for setting in SMALL for argument in ("--set", setting)]
    up = served.coppice("up", *settings)
    assert up.returncode == 0, up.stderr
    try:
        yield ServedHome(served.home, served.environment, up.stdout)
    finally:
        down = served.coppice("down")
        assert down.stdout == "stopped worker, mlflow, prefect\n", down.stderr
        assert processes_of(home) == []


def processes_of(home: Path) -> list[str]:
    """Command lines of living processes that were started below a home."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if str(home) in process.environ().get("COPPICE_SERVER", "") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found
