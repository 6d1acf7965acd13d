"""A disk that fills up again and again: each time one clear line, nothing half written, and Retry goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_fixtures import SCRIPTED, client, manifests, read_whole, small_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]

SIZE = 64 * 2**20
FIRST_ROOM = 8 * 2**10  # too little for the first stage; doubled after every failure


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)  # MLflow keeps connections to its database


def leave_room(disk: Path, size: int) -> None:
    """Makes a file so large that `size` bytes are free."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    taken = shutil.disk_usage(disk).free - size
    if taken > 0:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, taken)


def test_a_run_on_a_disk_that_fills_up_goes_on_once_there_is_room(
    small_disk: Path, new_home: Callable[[], Path], scripted_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow
    from prefect.states import Scheduled

    from flows.self_training import self_training

    home = small_disk / "home"
    home.mkdir()
    shutil.copy(new_home() / "mlflow.db", home)
    monkeypatch.setenv("COPPICE_HOME", str(home))
    failed_in, room = [], FIRST_ROOM
    leave_room(small_disk, room)
    state = self_training(small_config(*SCRIPTED), return_state=True)
    with get_client(sync_client=True) as prefect:
        while not state.is_completed():
            line = re.search(r"DiskFullError: disk full: (.*); make room(.*)", state.message)
            assert line is not None, state.message
            failed_in += re.findall(r"no room for (\S+) below", line[0]) or ["mlflow"]
            for file in home.glob("store/*/*/*"):
                if file.is_file() and not file.name.startswith("."):
                    read_whole(file)
            finished = manifests(home)
            room *= 2
            leave_room(small_disk, room)
            flow_run = prefect.read_flow_run(state.state_details.flow_run_id)
            prefect.set_flow_run_state(flow_run.id, Scheduled(name="AwaitingRetry"))
            flow_run = prefect.read_flow_run(flow_run.id)
            state = run_flow(
                self_training, flow_run=flow_run, parameters={"config": small_config(*SCRIPTED)}, return_type="state"
            )
            assert finished.items() <= manifests(home).items()
    assert len(set(failed_in)) >= 3, failed_in
    assert manifests(home) == manifests(scripted_home)
    runs = client(home).search_runs(["1"])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 3
