"""Defaults of the environment, and the temporary servers of killed runs, real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from server_fixtures import wait_until

from deployments.environment import STARTED_BY, TEMPORARY_SERVER, end_orphaned_servers, prepare_environment
from pipeline_lib.config import Settings

STARTS_A_FLOW = """
import time
from pathlib import Path
from deployments.environment import prepare_environment
from pipeline_lib.config import Settings
prepare_environment(Settings())
from prefect.server.api.server import SubprocessASGIServer
server = SubprocessASGIServer()
server.port = server.find_available_port()
process = server._run_uvicorn_command()
Path("server").write_text(str(process.pid))
time.sleep(600)
"""


def test_the_environment_is_only_a_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {"DO_NOT_TRACK": "mine"})
    prepare_environment(Settings(home=tmp_path))
    assert os.environ["DO_NOT_TRACK"] == "mine"
    assert os.environ["PREFECT_LOCAL_STORAGE_PATH"] == str(tmp_path / "prefect")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_next_command_ends_the_server_of_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTED_BY, "")  # put back afterwards
    command = [sys.executable, "-c", STARTS_A_FLOW]
    run = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "COPPICE_HOME": str(tmp_path)})
    file, here = tmp_path / "server", Settings(home=tmp_path)
    try:
        wait_until(lambda: file.exists() and bool(file.read_text()), "the server starts")
        server = psutil.Process(int(file.read_text()))
        wait_until(lambda: TEMPORARY_SERVER in server.cmdline(), "it is another program than its parent's")
        assert end_orphaned_servers(here) == 0  # its run lives
        run.kill()
        run.wait()
        assert end_orphaned_servers(Settings(home=tmp_path / "another")) == 0
        assert server.is_running()
        assert end_orphaned_servers(here) == 1
        wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "it ends")
    finally:
        run.kill()
        run.wait()
