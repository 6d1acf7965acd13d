"""Where the tests' runs live, and one Prefect server for all of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from served_home import ServedHome, coppice_up

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("untimed", deadline=None)  # how long an example takes says nothing on a shared machine
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`make test` runs two processes: a file stays in one of them, all files that use `served` in the same one."""
    from xdist.scheduler import LoadFileScheduling

    class ByServers(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "served" if "served: ServedHome" in (ROOT / file).read_text(encoding="utf-8") else file

    return ByServers(config, log)


@pytest.fixture(scope="session", autouse=True)
def outside_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes to the checkout's own home, and none asks a server that the user has running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("DO_NOT_TRACK", "true")
        for name in ("COPPICE_TRACKING_URI", "COPPICE_DEBUG", "PREFECT_API_URL"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of one Prefect server that the session's flows, also those of other processes, talk to."""
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_LOCAL_STORAGE_PATH,
        PREFECT_LOGGING_LEVEL,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    storage = tmp_path_factory.mktemp("prefect")
    updates = {PREFECT_LOCAL_STORAGE_PATH: str(storage), PREFECT_LOGGING_LEVEL: "CRITICAL"}
    # Seconds on a free machine; the rest is patience with a busy one.
    with temporary_settings(updates=updates), prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def new_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes homes whose tracking database has its tables already: creating them takes seconds each time."""
    from mlflow import MlflowClient

    template = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{template}").search_experiments()

    def make() -> Path:
        home = tmp_path_factory.mktemp("home")
        shutil.copy(template, home / "mlflow.db")
        return home

    return make


@pytest.fixture(scope="session")
def served(new_home: Callable[[], Path]) -> Iterator[ServedHome]:
    """A home in which `coppice up` runs for the session's tests."""
    with coppice_up(new_home()) as home:
        yield home


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[], Path]) -> Iterator[str]:
    """Address of one MLflow server for all tests that only talk to it."""
    from server_fixtures import mlflow_service

    service, address = mlflow_service(tmp_path_factory.mktemp("mlflow"), new_home() / "mlflow.db")
    service.start()
    yield address
    service.stop()


@pytest.fixture(scope="session")
def scripted_home(prefect_api: str, new_home: Callable[[], Path]) -> Path:
    """The home of a small scripted run that nothing went wrong in: what all others must come to."""
    from run_fixtures import SCRIPTED, small_config

    from flows.self_training import self_training

    home = new_home()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        self_training(small_config(*SCRIPTED))
    return home


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of the public datasets, ``gsm8k/train.parquet`` and so on; the test is skipped where there is none."""
    path = Path(os.environ.get("COPPICE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (path / "gsm8k" / "train.parquet").is_file():
        pytest.skip(f"no gsm8k/train.parquet in {path}; set COPPICE_TEST_DATA to the folder that holds gsm8k/")
    return path
