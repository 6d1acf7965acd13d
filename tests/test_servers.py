"""`coppice up` and `coppice down`: what is refused, what answers, who may ask, and that nothing is left."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
from served_home import ServedHome, free_port

from deployments.service import background, servers
from deployments.service.background import Server
from pipeline_lib.config import ConfigError, Settings

pytestmark = pytest.mark.timeout(900)  # whichever test comes first waits for the servers of `served`

STUBBORN = """
import signal, subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "child"])
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path))
    monkeypatch.setenv("COPPICE_PREFECT_PORT", str(free_port()))
    monkeypatch.setenv("COPPICE_MLFLOW_PORT", str(free_port()))
    return tmp_path


def make_server(folder: Path, code: str, *, healthy: bool = True, address: str = "here") -> Server:
    script = folder / "program.py"
    script.write_text(code)
    return Server(
        name="program",
        folder=folder,
        command=(sys.executable, str(script)),
        environment={},
        address=address,
        is_healthy=lambda _: healthy,
    )


def test_a_server_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "STOP_TIMEOUT_S", 0.3)
    server = make_server(tmp_path, STUBBORN)
    server.start()
    server.wait()
    assert background.wait_until(lambda: "deaf" in server.log.read_text(), 30)
    assert len(server.processes()) == 2
    assert server.stop()
    assert server.processes() == []
    assert not server.stop()


def test_what_wrote_over_its_environment_belongs_to_its_server_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "STOP_TIMEOUT_S", 0.3)
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], env={}).wait()"
    server = make_server(tmp_path, f"import subprocess, sys; {child}")
    server.start()
    server.wait()
    assert background.wait_until(server.has_children, 30)
    assert server.stop()
    assert server.processes() == []


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    server = make_server(tmp_path, "raise SystemExit('no such database')", healthy=False)
    server.start()
    with pytest.raises(ConfigError, match=r"program has ended: no such database \(.*program\.log\)"):
        server.wait()


def test_a_number_that_another_program_got_since_is_left_alone(tmp_path: Path) -> None:
    server = make_server(tmp_path, "")
    stranger = psutil.Process()
    server.file.write_text(json.dumps({"session": psutil.os.getsid(stranger.pid), "address": "here", "started": 0.0}))
    assert server.processes() == []


def test_one_that_runs_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "STOP_TIMEOUT_S", 0.3)
    server = make_server(tmp_path, "import time; time.sleep(600)", address="127.0.0.1:1")
    server.start()
    try:
        with pytest.raises(ConfigError, match=r"runs already, at 127\.0\.0\.1:1; `make down` ends it"):
            make_server(tmp_path, "", address="127.0.0.1:2").is_running()
        assert server.is_running()
    finally:
        server.stop()


def test_a_taken_port_is_refused_in_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("COPPICE_MLFLOW_PORT", str(port))
        with pytest.raises(
            ConfigError, match=f"port {port} is taken by another program; .*COPPICE_MLFLOW_PORT={port + 1}"
        ):
            servers.up()
    assert not list(home.glob("servers/*.json"))
    assert servers.down() == []


@pytest.mark.parametrize("name", servers.PREFECT_DATABASE)
def test_a_database_address_reaches_only_its_server(home: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "postgresql+asyncpg://a:first-secret@host/a")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://b:second-secret@host/b")
    seen = {
        server.name: {word for word in ("first-secret", "second-secret") if word in str(dict(server.environment))}
        for server in servers.servers(Settings(), servers.ServerSettings())
    }
    assert seen == {"prefect": {"first-secret"}, "mlflow": {"second-secret"}, "worker": set()}
    started = servers.servers(Settings(), servers.ServerSettings())
    assert "secret" not in str([server.command for server in started])
    assert "sqlite" not in str(dict(started[0].environment))


@pytest.mark.slow
def test_pages_are_unpacked_in_the_home_where_another_user_installed_the_libraries(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container; beside the library they cannot be written, and the server then has none."""
    folder = "PREFECT_SERVER_UI_STATIC_DIRECTORY"
    prefect, *_ = servers.servers(Settings(), servers.ServerSettings())
    assert folder not in prefect.environment
    monkeypatch.setattr(servers.os, "access", lambda *_: False)
    prefect, mlflow, _ = servers.servers(Settings(), servers.ServerSettings())
    assert Path(prefect.environment[folder]).is_relative_to(home)
    assert folder not in mlflow.environment
    monkeypatch.setenv(folder, "/elsewhere")
    prefect, *_ = servers.servers(Settings(), servers.ServerSettings())
    assert prefect.environment[folder] == "/elsewhere"


def test_up_prints_the_two_addresses_and_both_answer(served: ServedHome) -> None:
    assert [line.split()[-1] for line in served.printed.splitlines()[:2]] == [served.prefect, served.mlflow]
    for address in (f"{served.prefect}/api/health", f"{served.mlflow}/health", served.prefect, served.mlflow):
        with urlopen(address, timeout=60) as answer:
            assert answer.status == 200
    with urlopen(f"{served.prefect}/ui-settings", timeout=60) as answer:
        assert json.load(answer)["api_url"] == f"{served.prefect}/api"
    _, workers = served.ask("/work_pools/coppice/workers/filter", {})
    assert [worker["status"] for worker in workers] == ["ONLINE"]


@pytest.mark.slow
def test_up_again_changes_nothing(served: ServedHome) -> None:
    before = {path.name: path.read_text() for path in (served.home / "servers").glob("*.json")}
    assert len(before) == 3
    started = time.monotonic()
    assert served.coppice("up").returncode == 0
    assert time.monotonic() - started < 60
    assert {path.name: path.read_text() for path in (served.home / "servers").glob("*.json")} == before


@pytest.mark.slow
def test_they_listen_on_loopback_only(served: ServedHome) -> None:
    listening = set()
    for path in (served.home / "servers").glob("*.json"):
        leader = psutil.Process(json.loads(path.read_text())["session"])
        for process in (leader, *leader.children(recursive=True)):
            connections = process.net_connections()
            listening |= {item.laddr.ip for item in connections if item.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@pytest.mark.slow
def test_a_page_from_elsewhere_gets_no_answer(served: ServedHome) -> None:
    experiments = f"{served.mlflow}/api/2.0/mlflow/experiments/search?max_results=1"
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(experiments, headers={"Host": "rebound.example"}), timeout=60)
    assert refused.value.code == 403
    assert urlopen(experiments, timeout=60).status == 200
    for origin, allowed in ((served.prefect, served.prefect), ("http://elsewhere.example", None)):
        with urlopen(Request(f"{served.prefect}/api/health", headers={"Origin": origin}), timeout=60) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == allowed
