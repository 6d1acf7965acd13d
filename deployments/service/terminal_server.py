"""The Prefect server of runs from a terminal: one for all of a home's, started by the first and ended by the last.

It is started as `make up` starts its own: in a session of its own, which no Ctrl-C reaches, so that a run that is
interrupted can still say so; with a log; and on the same database, so that the pages of `make up` show these runs.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from deployments.service.background import Server
from deployments.service.servers import HOST, is_healthy_prefect, prefect_environment
from pipeline_lib.config import Settings
from pipeline_lib.store import read_json, write_json

NAME = "prefect-terminal"
APP = "prefect.server.api.server:create_app"
SEND_TIMEOUT_S = 5.0
EPHEMERAL = {
    "PREFECT__SERVER_EPHEMERAL": "1",  # no loops that look after schedules, no pages: it starts in half the time
    "PREFECT_UI_ENABLED": "0",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "0",  # no run uses any; a quarter of what its first start takes
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",  # into its log file, also where a run's own log is silent
}


@dataclass(frozen=True)
class PrefectOfRun:
    """The Prefect server that a run from a terminal talks to.

    Args:
        started: the home's own, in the background; None where the user names a server.
    """

    started: Server | None

    def wait(self) -> None:
        """Returns as soon as it answers; call it before the first flow.

        Raises:
            ConfigError: the home's own has ended, with its last words, or does not answer in time.
        """
        if self.started is not None:
            self.started.wait()

    def page(self) -> str | None:
        """Address of its pages; None where they end with the run."""
        from prefect.settings import PREFECT_UI_URL

        return None if self.started is not None else PREFECT_UI_URL.value()


@contextmanager
def prefect_of_run(settings: Settings) -> Iterator[PrefectOfRun]:
    """Names a Prefect server in ``PREFECT_API_URL`` while the block runs: the user's, else one of this home's.

    The home's own comes up while the block goes on, so import what is slow before `PrefectOfRun.wait`.

    Args:
        settings: where the home is.
    """
    if is_named():
        yield PrefectOfRun(None)
        return
    server = _join(settings.home.resolve())
    os.environ["PREFECT_API_URL"] = f"{server.address}/api"
    try:
        with _in_settings(f"{server.address}/api"):
            try:
                yield PrefectOfRun(server)
            finally:
                _send_what_is_left()
    finally:
        del os.environ["PREFECT_API_URL"]
        _leave(server)


def is_named() -> bool:
    """Whether the user names a server, in the environment or in a file of Prefect's (only then Prefect is imported)."""
    if "prefect.settings" in sys.modules:
        return _prefect_names_one()
    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    may_name_one = {profiles: "PREFECT_API_URL", Path(".env"): "PREFECT_API_URL", Path("prefect.toml"): "api"}
    may_name_one[Path("pyproject.toml")] = "tool.prefect"
    files = [file for file, mark in may_name_one.items() if file.is_file() and mark in file.read_text(errors="replace")]
    return bool(files) and _prefect_names_one()


def _prefect_names_one() -> bool:
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


@contextmanager
def _in_settings(api: str) -> Iterator[None]:
    """Tells Prefect, if it has read its environment before."""
    if "prefect.settings" not in sys.modules:
        yield
        return
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api}):
        yield


def _send_what_is_left() -> None:
    """Hands over logs and events that Prefect sends in the background, while somebody is there to take them."""
    if "prefect.logging.handlers" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
    EventsWorker.drain_all(timeout=SEND_TIMEOUT_S)


def _join(home: Path) -> Server:
    """The home's server, started if it does not run, with this process among those that hold it."""
    folder = home / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{NAME}.lock"):
        server = _server(home, _port_of_the_last(folder))
        if not server.processes():
            server = _server(home, _free_port())
            server.start()
        _hold(folder, _holders(folder) | {str(os.getpid()): psutil.Process().create_time()})
    return server


def _leave(server: Server) -> None:
    """Ends the server unless another living process holds it."""
    with FileLock(server.folder / f"{NAME}.lock"):
        others = {pid: started for pid, started in _holders(server.folder).items() if pid != str(os.getpid())}
        _hold(server.folder, others)
        if not others:
            server.stop()


def _holders(folder: Path) -> dict[str, float]:
    """Process ids with their time of birth, of living processes only: whoever was killed holds nothing any more."""
    file = folder / f"{NAME}.holders.json"
    return {pid: born for pid, born in read_json(file).items() if lives(int(pid), born)} if file.is_file() else {}


def _hold(folder: Path, holders: dict[str, float]) -> None:
    write_json(folder / f"{NAME}.holders.json", holders)


def lives(pid: int, born: float) -> bool:
    """Whether the process of that number is still the one that began then.

    Args:
        pid: its number.
        born: seconds since the epoch, as psutil tells them.
    """
    try:
        return bool(psutil.Process(pid).create_time() == born)
    except psutil.Error:
        return False


def _server(home: Path, port: int) -> Server:
    address = f"http://{HOST}:{port}"
    arguments = f"-m uvicorn --factory {APP} --host {HOST} --port {port} --lifespan on --log-level error"
    return Server(
        name=NAME,
        folder=home / "servers",
        command=(sys.executable, *arguments.split(), "--timeout-graceful-shutdown", "1"),
        environment=prefect_environment(home, address) | EPHEMERAL,
        address=address,
        is_healthy=lambda _: is_healthy_prefect(address),
    )


def _port_of_the_last(folder: Path) -> int:
    file = folder / f"{NAME}.json"
    return int(read_json(file)["address"].rpartition(":")[2]) if file.is_file() else _free_port()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
