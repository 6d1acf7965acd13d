"""Programs that go on when the command that started them has ended, and that can be found and ended later.

One idea: each leads a session of its own, whose id is kept in a file, and carries a mark in its environment. So a
server is all that lives in its session, to the last grandchild, and a number that was given to another
program since is never mistaken for it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline_lib.config import ConfigError
from pipeline_lib.store import read_json, write_json

MARK = "COPPICE_SERVER"
START_TIMEOUT_S = 300.0  # a busy machine takes ten times as long as a free one
ERROR_LINE = re.compile(r"[\w.]+(Error|Exception): .")  # as a traceback ends
STOP_TIMEOUT_S = 5.0  # idle servers end within two; a worker of Prefect that waits for its server may not end at all


@dataclass(frozen=True)
class Server:
    """One program to be kept running.

    Args:
        name: names its files, ``<name>.json`` and ``<name>.log``.
        folder: where these files lie.
        command: program and arguments.
        environment: all of the variables that it sees.
        address: where it answers, or the server that it works for: a running one with another address is refused.
        is_healthy: whether it answers; gets the time at which it was started, seconds since the epoch.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    environment: Mapping[str, str]
    address: str
    is_healthy: Callable[[float], bool]

    @property
    def log(self) -> Path:
        """File of what it prints."""
        return self.folder / f"{self.name}.log"

    @property
    def file(self) -> Path:
        """File with session id, address and start time of the one that was started last."""
        return self.folder / f"{self.name}.json"

    def processes(self) -> list[psutil.Process]:
        """All that lives in its session; empty when it does not run."""
        if not self.file.is_file():
            return []
        session = read_json(self.file)["session"]
        members = {
            process: environment
            for process in psutil.process_iter()
            if (environment := _environment_in(session, process)) is not None
        }
        # A program that renames itself writes over its environment, one that has just become another has none yet: then
        # those beside it tell whose session this is.
        is_ours = any(environment.get(MARK) == self._mark for environment in members.values())
        return list(members) if is_ours or not any(members.values()) else []

    def is_running(self) -> bool:
        """Whether it runs already.

        Raises:
            ConfigError: it does, but at another address.
        """
        if not self.processes():
            return False
        running = read_json(self.file)["address"]
        if running != self.address:
            raise ConfigError(f"up: {self.name} runs already, at {running}; `make down` ends it")
        return True

    def start(self) -> None:
        """Starts it; what it printed before is kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        started = time.time()
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command,
                env={**self.environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        write_json(self.file, {"session": process.pid, "address": self.address, "started": started})

    def wait(self) -> None:
        """Returns as soon as it is healthy; whoever started it.

        Raises:
            ConfigError: it ended, or took too long.
        """
        deadline, started = time.monotonic() + START_TIMEOUT_S, read_json(self.file)["started"]
        while not self.is_healthy(started):
            if not self.processes():
                raise ConfigError(f"{self.name} has ended: {self._last_line()} ({self.log})")
            if time.monotonic() > deadline:
                raise ConfigError(f"{self.name} does not answer after {START_TIMEOUT_S:.0f} s; see {self.log}")
            time.sleep(0.2)

    def has_children(self) -> bool:
        """Whether anything lives in its session beside its leader."""
        return len(self.processes()) > 1

    def stop(self) -> bool:
        """Ends all of it, the leader first, by SIGTERM and at last by SIGKILL; False if nothing ran."""
        ran = bool(self.processes())
        leader = read_json(self.file)["session"] if self.file.is_file() else None
        for number, only_leader in ((signal.SIGTERM, True), (signal.SIGTERM, False), (signal.SIGKILL, False)):
            for process in self.processes():
                if process.pid == leader or not only_leader:
                    with suppress(psutil.NoSuchProcess):
                        process.send_signal(number)
            wait_until(lambda: not self.processes(), STOP_TIMEOUT_S)
        self.file.unlink(missing_ok=True)
        return ran

    @property
    def _mark(self) -> str:
        return f"{self.folder}/{self.name}"

    def _last_line(self) -> str:
        """The last error that it printed, else its last line."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        errors = [line for line in lines if ERROR_LINE.match(line)]
        return (errors or lines or ["it printed nothing"])[-1]


def wait_until(happened: Callable[[], bool], timeout_s: float) -> bool:
    """Returns whether it happened in time, as soon as it did."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _environment_in(session: int, process: psutil.Process) -> dict[str, str] | None:
    """The environment of a living process of `session`; None for any other."""
    try:
        if os.getsid(process.pid) != session or process.status() == psutil.STATUS_ZOMBIE:
            return None
        environment: dict[str, str] = process.environ()
        return environment
    except (OSError, psutil.Error):  # it has just ended, or is somebody else's
        return None
