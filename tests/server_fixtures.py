"""Real servers and a real worker for tests, each of which can be killed and started again at the same place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import warm_engine
from filelock import FileLock

TIME_LIMIT_S = 300.0
STOP_TIMEOUT_S = 10.0
POOL = "tests"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(happened: Callable[[], bool], what: str, *, limit_s: float = TIME_LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, f"after {limit_s:.0f} s still not: {what}"
        time.sleep(0.25)


class Service:
    """A command of this environment that runs until it is stopped or killed, with all of its processes.

    Args:
        arguments: of `python -m`.
        environment: beside this process's own.
        log: its output is appended to this file.
        is_up: whether it works.
        limit_s: how long it may take until then.
    """

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        log: Path,
        is_up: Callable[[], bool] = lambda: True,
        limit_s: float = TIME_LIMIT_S,
    ) -> None:
        self.command = [sys.executable, "-m", *arguments]
        self.environment, self.log, self._is_up, self._limit_s = dict(environment), log, is_up, limit_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        wait_until(self._is_up_or_ended, f"{' '.join(self.command)} answers", limit_s=self._limit_s)

    @property
    def pid(self) -> int:
        """Of its first process, and of the group that all of them are in."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Kills it and the processes that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):  # it had ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def kill_alone(self) -> None:
        """Kills it; the processes that it started go on, as they do after a crash."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """Asks it to end; a Prefect worker may take minutes, which are not worth waiting for."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def _is_up_or_ended(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(encoding="utf-8", errors="replace")
        return self._is_up()


@contextmanager
def shared(state: Path, make: Callable[[], tuple[Service, str]]) -> Iterator[str]:
    """Address of a service that all processes of a session use: the first one starts it, the last one ends it.

    Args:
        state: file in which they agree.
        make: the service, not started, and its address.
    """
    lock = FileLock(f"{state}.lock")
    with lock:
        if not state.exists():
            service, address = make()
            service.start()
            state.write_text(f"{address} {service.pid} 0", encoding="utf-8")
        address, pid, num_users = state.read_text(encoding="utf-8").split()
        state.write_text(f"{address} {pid} {int(num_users) + 1}", encoding="utf-8")
    try:
        yield address
    finally:
        with lock:
            address, pid, num_users = state.read_text(encoding="utf-8").split()
            state.write_text(f"{address} {pid} {int(num_users) - 1}", encoding="utf-8")
            if num_users == "1":
                os.killpg(int(pid), signal.SIGKILL)
                state.unlink()


def mlflow_database(folder: Path) -> None:
    """``mlflow.db`` with its tables."""
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}").search_experiments()


def prefect_database(folder: Path) -> None:
    """``prefect.db`` with its tables."""
    upgrade = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    subprocess.run(upgrade, env={**os.environ, **below(folder)}, stdout=subprocess.DEVNULL, check=True)


IDLE = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "PAUSE_EXPIRATIONS", "TRIGGERS", "EVENT_PERSISTER")
"""Loops of Prefect's server for schedules, automations and their pages; `coppice up`, in other tests, has them all."""


def below(folder: Path) -> dict[str, str]:
    """Environment of a Prefect server that keeps everything in `folder`; nobody looks at its pages."""
    return {
        "PREFECT_SERVER_UI_ENABLED": "false",  # a third of what its start takes
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",  # a quarter of it
        **{f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false" for service in IDLE},
        "PREFECT_HOME": str(folder / "prefect-server"),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
    }


def mlflow_service(folder: Path, database: Path) -> tuple[Service, str]:
    """An MLflow server over a database below `folder`, and its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    service = Service(
        *("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts")),
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        log=folder / "mlflow.log",
        is_up=lambda: answers(f"{address}/health"),
    )
    return service, address


def prefect_service(folder: Path) -> tuple[Service, str]:
    """A Prefect server over a database below `folder`, and the address of its API."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    service = Service(
        *("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)),
        environment=below(folder),
        log=folder / "prefect.log",
        is_up=lambda: answers(f"{address}/health"),
    )
    return service, address


def worker_service(api: str, folder: Path, environment: Mapping[str, str]) -> Service:
    """A process worker of the pool `tests` that asks for work every second."""
    log = folder / "worker.log"
    return Service(
        *("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", folder.name),
        environment={
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(folder),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            **environment,
        },
        log=log,
        is_up=lambda: "started!" in log.read_text(encoding="utf-8"),
    )


def engine_service(api: str, folder: Path, environment: Mapping[str, str]) -> tuple[Service, str]:
    """Where a worker's flow processes are forked, and the command by which it asks for one; see `warm_engine`."""
    path = folder / "engine"
    service = Service(
        *("warm_engine", "serve", str(path)),
        environment={
            "PYTHONPATH": str(Path(__file__).parent),
            "PREFECT_API_URL": api,
            "PREFECT_HOME": str(folder),
            **environment,
        },
        log=folder / "engine.log",
        is_up=path.exists,
    )
    return service, warm_engine.command(path)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
