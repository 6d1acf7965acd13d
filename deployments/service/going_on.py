"""What goes on in a home: servers, the worker, runs in progress with stage and share.

Runs come from MLflow; how far they are from the Prefect server that they talk to, where one answers; whether their
process lives, for runs from a terminal, from the home's own notes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deployments.service.background import Server
from deployments.service.servers import ServerSettings, ask_loopback, is_healthy_prefect, servers
from deployments.service.terminal_server import NAME as TERMINAL
from deployments.service.terminal_server import lives
from deployments.service.worker import POOL
from pipeline_lib.config import Settings
from pipeline_lib.store import read_json
from pipeline_lib.tracking.history.run_list import RunSummary, running_runs


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A server, or the worker.

    Args:
        name: as its files are called.
        state: ``up``, ``down``, or ``started`` where it does not answer yet.
        address: where it answers, or the server that it works for; None where it does not run.
    """

    name: str
    state: str
    address: str | None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run that MLflow calls RUNNING.

    Args:
        run_id: of MLflow.
        name: its name there.
        stage: what it is at; None where nobody knows.
        percent: how much of that is done, from 0 to 100; None where nobody knows.
        is_alive: whether its process lives; None for a run of a deployment, or one of another machine.
    """

    run_id: str
    name: str
    stage: str | None
    percent: float | None
    is_alive: bool | None


@dataclass(frozen=True, slots=True)
class HomeStatus:
    """All of it.

    Args:
        home: ``COPPICE_HOME``.
        servers: prefect, mlflow, worker, and the server of runs from a terminal.
        runs: in progress, the latest first.
    """

    home: str
    servers: tuple[ServerStatus, ...]
    runs: tuple[RunStatus, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


def home_status(settings: Settings) -> HomeStatus:
    """Asks servers and files; starts nothing.

    Args:
        settings: where the home is.
    """
    home = settings.home.resolve()
    found = [_server_status(server) for server in servers(settings, ServerSettings())]
    found.append(_terminal_status(home / "servers"))
    prefects = [each.address for each in found if each.name.startswith("prefect") and each.state == "up"]
    addresses = [address for address in prefects if address]
    runs = tuple(_run_status(home, run, addresses) for run in running_runs(settings))
    return HomeStatus(str(home), tuple(found), runs)


def _server_status(server: Server) -> ServerStatus:
    if not server.processes():
        return ServerStatus(server.name, "down", None)
    note = read_json(server.file)
    if server.name == "worker":
        is_up = bool(ask_loopback(f"{note['address']}/api/work_pools/{POOL}/workers/filter", {}))
    else:
        path = "api/health" if server.name == "prefect" else "health"
        is_up = ask_loopback(f"{note['address']}/{path}") is not None
    return ServerStatus(server.name, "up" if is_up else "started", note["address"])


def _terminal_status(folder: Path) -> ServerStatus:
    file = folder / f"{TERMINAL}.json"
    address = str(read_json(file)["address"]) if file.is_file() else None
    if address is None or not is_healthy_prefect(address):
        return ServerStatus(TERMINAL, "down", None)
    return ServerStatus(TERMINAL, "up", address)


def _run_status(home: Path, run: RunSummary, prefects: list[str]) -> RunStatus:
    known = (_stage_of(address, run.flow_run_id) for address in prefects)
    stage, percent = next((at for at in known if at is not None), (None, None))
    is_deployed = run.flow_run_id == run.run_key
    return RunStatus(run.run_id, run.name, stage, percent, None if is_deployed else _is_alive(home, run.run_key))


def _stage_of(address: str, flow_run: str | None) -> tuple[str, float | None] | None:
    """What Prefect shows of a run: the task that runs, and the latest bar that it has; None where it knows neither."""
    if flow_run is None:
        return None
    mine = {"id": {"any_": [flow_run]}}
    tasks = ask_loopback(
        f"{address}/api/task_runs/filter",
        {"flow_runs": mine, "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}, "limit": 1},
    )
    if not tasks:
        return None
    bars = ask_loopback(
        f"{address}/api/artifacts/filter",
        {
            "artifacts": {"task_run_id": {"any_": [tasks[0]["id"]]}, "type": {"any_": ["progress"]}},
            "sort": "UPDATED_DESC",
            "limit": 1,
        },
    )
    return str(tasks[0]["name"]), float(bars[0]["data"]) if bars else None


def _is_alive(home: Path, run_key: str) -> bool:
    """Whether the process that holds the run lives; see `command.options.the_only_one`."""
    file = home / "locks" / f"{run_key}.json"
    if not file.is_file():
        return False
    note: Mapping[str, Any] = read_json(file)
    return lives(int(note["pid"]), float(note["born"]))
