"""A team's server: `coppice up` on PostgreSQL carries a whole run; compose.yaml says the same with containers."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from served_home import coppice_up, free_port, small_served

from deployments.service.servers import ServerSettings, servers
from pipeline_lib.config import Settings

COMPOSE = Path(__file__).resolve().parents[1] / "deployments" / "compose.yaml"
OWNER = "postgres"  # of the temporary cluster, when root runs the tests: PostgreSQL refuses root


@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL cluster of one's own on loopback."""

    port: int
    password: str

    def url(self, database: str, driver: str = "postgresql") -> str:
        return f"{driver}://coppice:{self.password}@127.0.0.1:{self.port}/{database}"

    def query(self, database: str, text: str) -> list[Any]:
        import psycopg2

        connection = psycopg2.connect(self.url(database))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(text)
                return [row[0] for row in cursor.fetchall()] if cursor.description else []
        finally:
            connection.close()


def binary(name: str) -> str:
    """A program of the newest PostgreSQL here; the test is skipped where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}: install Debian's postgresql")
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    psycopg2 = pytest.importorskip("psycopg2")
    initdb, postgres = binary("initdb"), binary("postgres")
    made = Cluster(free_port(), secrets.token_hex(8))
    folder = Path(tempfile.mkdtemp(prefix="coppice-postgres-"))  # pytest's own folders are closed to other users
    (folder / "password").write_text(made.password)
    who: dict[str, Any] = {"cwd": folder}
    if os.getuid() == 0:
        who |= {"user": OWNER, "group": OWNER, "extra_groups": []}
        for path in (folder, folder / "password"):
            shutil.chown(path, OWNER, OWNER)
    data = str(folder / "data")
    options = ("--username=coppice", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
    done = subprocess.run(
        [initdb, "-D", data, "--pwfile=password", *options], **who, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with (folder / "log").open("ab") as log:
        command = [postgres, "-D", data, "-h", "127.0.0.1", "-p", str(made.port), "-k", str(folder), "-c", "fsync=off"]
        server = subprocess.Popen(command, **who, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                made.query("postgres", "SELECT 1")
                break
            except psycopg2.OperationalError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        for database in ("prefect", "mlflow"):
            made.query("postgres", f"CREATE DATABASE {database}")
        yield made
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_run_on_postgresql(cluster: Cluster, tmp_path: Path) -> None:
    databases = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": cluster.url("prefect", "postgresql+asyncpg"),
        "MLFLOW_BACKEND_STORE_URI": cluster.url("mlflow"),
    }
    with coppice_up(tmp_path, **databases) as served:
        status, run = served.start("self-training", small_served().model_dump(mode="json"))
        assert status == 201
        served.wait_for(run["id"], "COMPLETED")
        commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert list(tmp_path.rglob("*.db")) == []
    assert cluster.query("prefect", "SELECT state_name FROM flow_run WHERE state_type != 'SCHEDULED'") == ["Completed"]
    assert sorted(cluster.query("mlflow", "SELECT name || ' ' || status FROM runs")) == [
        "base FINISHED",
        "iteration 1 FINISHED",
        "tiny seed 0 FINISHED",
    ]
    assert cluster.query("mlflow", "SELECT version FROM model_versions WHERE name = 'coppice-tiny'") == [1]
    logs = "".join(path.read_text(errors="replace") for path in (tmp_path / "servers").glob("*.log"))
    assert cluster.password not in logs
    assert not [command for command in commands if cluster.password in command]


def test_compose_publishes_on_loopback_and_holds_no_secret() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)
    values = [str(value) for service in services.values() for value in service["environment"].values()]
    passwords = [value for value in values if re.search(r"//[^/]*:[^/]*@", value)]
    assert len(passwords) == 2
    for value in (*passwords, services["database"]["environment"]["POSTGRES_PASSWORD"]):
        assert "${COPPICE_DB_PASSWORD:?choose one}" in value


def test_compose_and_plain_processes_are_told_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    monkeypatch.setattr(os, "environ", {"COPPICE_HOME": str(tmp_path)})
    plain = {server.name: dict(server.environment) for server in servers(Settings(), ServerSettings())}
    of_one_machine = {"MLFLOW_DEFAULT_ARTIFACT_ROOT"}  # with containers files go through the server
    for name in ("prefect", "mlflow"):
        own = set(plain[name]) - set(plain["worker"])
        assert set(services[name]["environment"]) - {"PREFECT_HOME"} == own - of_one_machine
    assert set(services["worker"]["environment"]) < set(plain["worker"])
