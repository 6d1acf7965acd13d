"""Ctrl-C and SIGTERM, as a person and a scheduler send them to `coppice run`: it ends at once and goes on later."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest
from forked_run import start_in_terminal
from run_fixtures import client
from server_fixtures import wait_until

from deployments.environment import exempt_loopback

pytestmark = pytest.mark.slow

SETTINGS = (
    "policy.backend=scripted",
    "num_iterations=1",
    "problems.num_problems=24",
    "problems.num_validation=8",
    "evaluation.datasets=tiny-word",
    "evaluation.num_problems=8",
    "evaluation.num_samples=0",
)
END_TIMEOUT_S = 30.0  # alone it takes 3; three processes of tests share two cores
PROXY = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}  # nobody listens there


class Terminal:
    """A shell in which `coppice run` is typed, with stages that wait where the test says."""

    def __init__(self, home: Path, *settings: str, **environment: str) -> None:
        self.home, self.faults = home, home / "faults"
        self.faults.mkdir(exist_ok=True)
        self.output = home / f"output-{len(list(home.glob('output-*')))}.txt"
        self.output.touch()
        arguments = [argument for setting in (*SETTINGS, *settings) for argument in ("--set", setting)]
        self.arguments = ("run", "--preset", "tiny", *arguments)
        names = {"COPPICE_HOME": str(home), "COPPICE_TEST_FAULTS": str(self.faults), "HOME": str(home)}
        self.environment = names | environment

    def start(self) -> ForkServerProcess:
        return start_in_terminal(self.environment, self.output, *self.arguments)

    def run(self) -> int | None:
        """Its exit code."""
        process = self.start()
        process.join()
        return process.exitcode

    def interrupt_in(self, stage: str, number: signal.Signals) -> int | None:
        """Exit code of a run that gets a signal, with all that it started, in a stage."""
        self.hold(stage)
        process = self.start()
        self.wait_in(stage, process)
        sent = time.monotonic()
        os.killpg(process.pid, number)
        process.join(2 * END_TIMEOUT_S)
        took = time.monotonic() - sent
        self.go_on(stage)
        (self.faults / "waiting").unlink()
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
        assert took < END_TIMEOUT_S, self.printed()
        return process.exitcode

    def hold(self, stage: str) -> None:
        """The next run that would end such a stage waits there."""
        (self.faults / stage).write_text("wait")

    def wait_in(self, stage: str, process: ForkServerProcess) -> None:
        """Returns once a run waits there."""
        wait_until(lambda: (self.faults / "waiting").exists() or not process.is_alive(), f"{stage} is reached")
        assert process.is_alive(), self.printed()

    def go_on(self, stage: str) -> None:
        (self.faults / stage).unlink()

    def tried(self, stage: str) -> int:
        """How often such a stage came to its end in this home."""
        return (self.faults / "tried").read_text(encoding="utf-8").split().count(stage)

    def printed(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def living(self) -> list[str]:
        """Whatever this home's runs have left running."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("COPPICE_HOME") == str(self.home):
                    found.append(" ".join(process.cmdline()))
        return found

    def running(self) -> list[str]:
        """What Prefect or MLflow still calls running."""
        with sqlite3.connect(f"{(self.home / 'prefect.db').as_uri()}?mode=ro", uri=True) as prefect:
            names = [
                f"{name} in Prefect"
                for (name,) in prefect.execute("select name from flow_run where state_type in ('RUNNING', 'PENDING')")
            ]
        mlflow = client(self.home).search_runs(["1"], filter_string="attributes.status = 'RUNNING'")
        return names + [f"{run.info.run_name} in MLflow" for run in mlflow]


@pytest.mark.timeout(900)
def test_an_interrupted_run_ends_at_once_leaves_nothing_running_and_goes_on(
    new_server_home: Callable[[], Path],
) -> None:
    terminal = Terminal(new_server_home(), **PROXY)
    interrupts = (
        ("evaluate-policy", signal.SIGINT, 130),
        ("record-iteration", signal.SIGTERM, 143),
        ("search-shard", signal.SIGINT, 130),
        ("train-policy", signal.SIGTERM, 143),
    )
    for stage, number, code in interrupts:
        assert terminal.interrupt_in(stage, number) == code, terminal.printed()
        assert "the same command goes on from there" in terminal.printed()
        assert "Traceback" not in terminal.printed()
        assert terminal.living() == []
        assert terminal.running() == []
    assert terminal.run() == 0, terminal.printed()
    assert terminal.living() == []
    assert terminal.tried("search-shard") == 2  # once interrupted, once finished: later runs found it


@pytest.mark.timeout(300)
def test_a_home_may_have_a_path_that_means_something_in_addresses(
    new_server_home: Callable[[], Path], tmp_path: Path
) -> None:
    terminal = Terminal(new_server_home().rename(tmp_path / "50% of #1? a b"))
    assert terminal.run() == 0, terminal.printed()
    assert (terminal.living(), terminal.running()) == ([], [])


@pytest.mark.timeout(300)
def test_a_server_that_cannot_come_up_says_why_at_once(new_server_home: Callable[[], Path]) -> None:
    home = new_server_home()
    with sqlite3.connect(home / "prefect.db") as database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")  # of a Prefect that is to come
    terminal = Terminal(home)
    assert terminal.run() == 2
    assert "prefect-terminal has ended" in terminal.printed()
    assert "ffffffffffff" in terminal.printed()
    assert terminal.living() == []


@pytest.mark.timeout(600)
def test_runs_of_a_sweep_at_once_share_what_they_can_and_the_very_same_run_is_refused(tmp_path: Path) -> None:
    """In an empty home: databases, server and stages are made once, whoever comes first."""
    home = tmp_path / "home"
    home.mkdir()
    sweep = [Terminal(home, f"train.learning_rate={rate}") for rate in ("1e-4", "2e-4", "3e-4", "4e-4")]
    sweep[0].hold("search-shard")
    first = sweep[0].start()
    sweep[0].wait_in("search-shard", first)
    others = [terminal.start() for terminal in sweep[1:]]
    wait_until(lambda: all("waits for" in terminal.printed() for terminal in sweep[1:]), "the others wait")
    assert re.search(
        r"search-shard: waits for tiny-seed-0-\S+learning_rate=0\.0001\S* \(process \d+", sweep[1].printed()
    )
    again = Terminal(home, "train.learning_rate=1e-4")
    assert again.run() == 2
    assert "this very run is going on in another process" in again.printed()
    sweep[0].go_on("search-shard")
    for process in (first, *others):
        process.join()
    assert [process.exitcode for process in (first, *others)] == [0, 0, 0, 0], [one.printed() for one in sweep]
    assert again.tried("search-shard") == 1
    assert again.tried("train-policy") == 4
    names = {run.info.run_name for run in client(home).search_runs(["1"]) if "seed" in run.info.run_name}
    rates = sorted(rate for name in names for rate in re.findall(r"learning_rate=(\S+)", name))
    assert rates == ["0.0001", "0.0002", "0.0003", "0.0004"]


def test_loopback_is_exempt_from_a_proxy_beside_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"NO_PROXY": "intranet, 127.0.0.1"})
    exempt_loopback()
    assert os.environ == {"NO_PROXY": "intranet,127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
