"""`coppice up` and `coppice down`: Prefect's server, MLflow's server and a worker on loopback.

They are the same programs that a team would run on a server, told by their own environment variables what to
do, and every value here is only a default. Data lies below ``COPPICE_HOME`` unless
``PREFECT_SERVER_DATABASE_CONNECTION_URL`` and ``MLFLOW_BACKEND_STORE_URI`` name databases; such an address holds a
password, so just the server that needs it gets to see it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

from filelock import FileLock
from pydantic import Field

from deployments.service.background import Server, wait_until
from deployments.service.worker import POOL, as_variable
from pipeline_lib.config import ConfigError, EnvironmentSettings, PipelineConfig, Settings, sqlite_uri
from pipeline_lib.distribution import missing_module
from pipeline_lib.store import read_json

HOST = "127.0.0.1"
CANCEL_TIMEOUT_S = 60.0
PREFECT_PAGES = ("PREFECT_SERVER_UI_STATIC_DIRECTORY", "PREFECT_UI_STATIC_DIRECTORY")
PREFECT_DATABASE = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
MLFLOW_DATABASE = ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_REGISTRY_STORE_URI")
LOOPBACK = build_opener(ProxyHandler({}))  # a proxy has no business there


class ServerSettings(EnvironmentSettings):
    """Ports; read from the environment with the prefix ``COPPICE_``."""

    prefect_port: int = Field(4200, ge=1, le=65535, description="Port of Prefect's server.")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="Port of MLflow's server.")

    @property
    def prefect_url(self) -> str:
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{HOST}:{self.mlflow_port}"


def up(configs: Sequence[PipelineConfig] = ()) -> ServerSettings:
    """Starts what does not run yet, and returns when everything answers.

    Args:
        configs: what the deployments of a worker that is started here have, see `worker.register_deployments`; none
            takes the preset tiny.

    Raises:
        ConfigError: a port is taken, or a server ended or did not answer; nothing started here is left running.
    """
    settings, ports = Settings(), ServerSettings()
    _require_driver()
    prefect, mlflow, worker = servers(settings, ports, configs)
    prefect.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(prefect.folder / "up.lock"):
        missing = [server for server in (prefect, mlflow, worker) if not server.is_running()]
        for server, port, variable in (
            (prefect, ports.prefect_port, "COPPICE_PREFECT_PORT"),
            (mlflow, ports.mlflow_port, "COPPICE_MLFLOW_PORT"),
        ):
            if server in missing:
                _require_free(port, variable)
        try:
            _start([server for server in (prefect, mlflow) if server in missing])
            _start([server for server in (worker,) if server in missing])
        except BaseException:
            for server in reversed(missing):
                server.stop()
            raise
    return ports


def down() -> list[str]:
    """Ends what `up` started, and returns the names.

    A run under way is cancelled, while there is a server to be told and its hooks can still end its MLflow run; Retry
    goes on from there. Left to itself it would stay Running for ever.
    """
    prefect, mlflow, worker = servers(Settings(), ServerSettings())
    if worker.processes() and prefect.file.is_file():
        url = read_json(prefect.file)["address"]
        wait_until(lambda: not (_cancel_runs(url) or worker.has_children()), CANCEL_TIMEOUT_S)
    return [server.name for server in (worker, mlflow, prefect) if server.stop()]


def servers(
    settings: Settings, ports: ServerSettings, configs: Sequence[PipelineConfig] = ()
) -> tuple[Server, Server, Server]:
    """Prefect, MLflow and the worker, in the order of their start."""
    home = settings.home.resolve()
    common = _environment(home, ports.prefect_url)
    folder, python = home / "servers", sys.executable
    return (
        Server(
            name="prefect",
            folder=folder,
            command=(python, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(ports.prefect_port)),
            environment=prefect_environment(home, ports.prefect_url) | _pages(home, ports),
            address=ports.prefect_url,
            is_healthy=lambda _: is_healthy_prefect(ports.prefect_url),
        ),
        Server(
            name="mlflow",
            folder=folder,
            command=(python, "-m", "mlflow", "server"),
            environment=common | _mlflow_environment(home, ports) | _set_by_user(MLFLOW_DATABASE),
            address=ports.mlflow_url,
            is_healthy=lambda _: ask_loopback(f"{ports.mlflow_url}/health") is not None,
        ),
        Server(
            name="worker",
            folder=folder,
            command=(python, "-m", "deployments.command.app", "worker"),
            environment=common | {"COPPICE_TRACKING_URI": ports.mlflow_url, **as_variable(configs)},
            address=ports.prefect_url,
            is_healthy=lambda started: _has_worker(ports.prefect_url, started),
        ),
    )


def prefect_environment(home: Path, url: str) -> dict[str, str]:
    """All variables of a Prefect server on loopback whose data lies below the home, or where the user says.

    Args:
        home: the resolved ``COPPICE_HOME``.
        url: where the server will answer.
    """
    database = _set_by_user(PREFECT_DATABASE) or {
        PREFECT_DATABASE[0]: sqlite_uri(home / "prefect.db", scheme="sqlite+aiosqlite")
    }
    return _environment(home, url) | database | {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def is_healthy_prefect(url: str) -> bool:
    """Whether a Prefect server answers there."""
    return ask_loopback(f"{url}/api/health") is True


def _environment(home: Path, prefect_url: str) -> dict[str, str]:
    """What every server sees; of the databases' addresses, which hold passwords, none."""
    common = {name: value for name, value in os.environ.items() if name not in (*PREFECT_DATABASE, *MLFLOW_DATABASE)}
    common |= {"COPPICE_HOME": str(home), "DO_NOT_TRACK": "true", "PYTHONUNBUFFERED": "1"}
    return common | {"PREFECT_HOME": str(home / "prefect-server"), "PREFECT_API_URL": f"{prefect_url}/api"}


def _pages(home: Path, ports: ServerSettings) -> dict[str, str]:
    """What lets a browser see Prefect's pages: the server unpacks them beside the library unless told otherwise."""
    spec = find_spec("prefect")
    library = Path(spec.origin if spec and spec.origin else __file__).parent
    is_installed_by_another = not os.access(library / "server", os.W_OK) and not _set_by_user(PREFECT_PAGES)
    unpacked = {PREFECT_PAGES[0]: str(home / "prefect-server" / "pages")} if is_installed_by_another else {}
    origins = (ports.prefect_url, f"http://localhost:{ports.prefect_port}")
    return unpacked | {
        "PREFECT_UI_API_URL": f"{ports.prefect_url}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),  # not every page that a browser happens to show
        # In memory, the default, they die with the server: whoever holds a deployment's slot could not renew it, and
        # nobody would give the slot back.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }


def _mlflow_environment(home: Path, ports: ServerSettings) -> dict[str, str]:
    hosts = (f"{HOST}:{ports.mlflow_port}", f"localhost:{ports.mlflow_port}")
    return {
        # The very files that runs without a server use, so that either sees the other's runs.
        "MLFLOW_BACKEND_STORE_URI": sqlite_uri(home / "mlflow.db"),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": (home / "mlartifacts").as_uri(),
        "MLFLOW_ARTIFACTS_DESTINATION": str(home / "mlartifacts"),
        "MLFLOW_HOST": HOST,
        "MLFLOW_PORT": str(ports.mlflow_port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),  # a name that leads here is not enough
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}" for host in hosts),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _set_by_user(names: tuple[str, ...]) -> dict[str, str]:
    """Those of the variables that are set, with their values."""
    return {name: os.environ[name] for name in names if name in os.environ}


def _require_driver() -> None:
    """Raises ConfigError where MLflow is sent to a PostgreSQL and lacks its driver; Prefect brings its own."""
    for variable, uri in _set_by_user(MLFLOW_DATABASE).items():
        if uri.startswith("postgresql:") and (missing := missing_module("psycopg2")):
            raise ConfigError(f"up: {variable}: {missing}")


def _start(missing: list[Server]) -> None:
    """Starts them side by side, and returns when all are healthy."""
    for server in missing:
        server.start()
    for server in missing:
        server.wait()


def _require_free(port: int, variable: str) -> None:
    """Raises ConfigError where another program listens on the port; `variable` chooses another."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ConfigError(
                f"up: port {port} is taken by another program; end it, or choose another: {variable}={port + 1} make up"
            ) from None


def _has_worker(prefect_url: str, started: float) -> bool:
    """Whether a worker has reported since it was started."""
    workers = ask_loopback(f"{prefect_url}/api/work_pools/{POOL}/workers/filter", {}) or []
    return any(datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() > started for worker in workers)


def _cancel_runs(prefect_url: str) -> bool:
    """Cancels what the worker's pool is busy with; False when nothing is left, or nobody answers."""
    query = {
        "flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}},
        "work_pools": {"name": {"any_": [POOL]}},
    }
    runs = ask_loopback(f"{prefect_url}/api/flow_runs/filter", query) or []
    for run in runs:
        if run["state_type"] != "CANCELLING":
            state = {"type": "CANCELLING", "message": "`coppice down`"}
            ask_loopback(f"{prefect_url}/api/flow_runs/{run['id']}/set_state", {"state": state})
    return bool(runs)


def ask_loopback(url: str, body: Mapping[str, Any] | None = None) -> Any:
    """What a server on this machine answers, parsed where it is JSON; None without an answer.

    Args:
        url: of the page.
        body: posted as JSON; None only asks.
    """
    data = None if body is None else json.dumps(body).encode()
    try:
        with LOOPBACK.open(Request(url, data, {"Content-Type": "application/json"}), timeout=5) as answer:
            text = answer.read().decode()
    except (URLError, OSError):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
