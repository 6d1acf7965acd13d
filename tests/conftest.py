"""Where the tests' runs live, and one Prefect server for all of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings
from served_home import ServedHome, coppice_up
from server_fixtures import Service, mlflow_database, mlflow_service, prefect_database, prefect_service, shared

ROOT = Path(__file__).resolve().parents[1]
SLOW_TO_START = ("served: ServedHome", "from forked_run import")
LONGEST = (
    "alerts",  # before any other flow of its process: Prefect's thread for events keeps to the first server it talks to
    "ray",
    "browser",
    "smollm2",
    "flow",
    "rerun",
    "kill_sweep",
    "rerun_after_kills",
    "postgres",
    "memory",
)

settings.register_profile("untimed", deadline=None)  # how long an example takes says nothing on a shared machine
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`make test` runs several processes: a file stays in one of them, files that share a slow start too."""
    from xdist.scheduler import LoadFileScheduling

    class ByWhatIsShared(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            text = (ROOT / file).read_text(encoding="utf-8")
            return next((shared for shared in SLOW_TO_START if shared in text), file)

    config.option.loadscopereorder = False  # it would start files of one long test last
    return ByWhatIsShared(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first and those without slow tests last, so that the processes end at about the same time."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        ranks = {ROOT / "tests" / f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
        slow = {item.path: len(ranks) for item in items if item.get_closest_marker("slow")}
        ranks = slow | ranks
        items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(scope="session", autouse=True)
def outside_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes to the checkout's own home, and none asks a server that the user has running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("DO_NOT_TRACK", "true")
        for name in ("COPPICE_TRACKING_URI", "MLFLOW_TRACKING_URI", "COPPICE_DEBUG", "PREFECT_API_URL"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of the session."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def template(session_folder: Path) -> Callable[[Callable[[Path], None]], Path]:
    """The folder that a function fills, filled once for all processes of the session: it takes seconds."""

    def made(make: Callable[[Path], None]) -> Path:
        folder = session_folder / make.__name__
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = folder.with_suffix(".partial")
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def new_home(
    tmp_path_factory: pytest.TempPathFactory, template: Callable[[Callable[[Path], None]], Path]
) -> Callable[[], Path]:
    """Makes homes whose tracking database has its tables already."""

    def make() -> Path:
        home = tmp_path_factory.mktemp("home")
        shutil.copytree(template(mlflow_database), home, dirs_exist_ok=True)
        return home

    return make


@pytest.fixture(scope="session")
def new_server_home(
    new_home: Callable[[], Path], template: Callable[[Callable[[Path], None]], Path]
) -> Callable[[], Path]:
    """The same for homes in which a Prefect server runs, too."""

    def make() -> Path:
        home = new_home()
        shutil.copytree(template(prefect_database), home, dirs_exist_ok=True)
        return home

    return make


@pytest.fixture(scope="session")
def prefect_api(
    session_folder: Path, tmp_path_factory: pytest.TempPathFactory, new_server_home: Callable[[], Path]
) -> Iterator[str]:
    """Address of one Prefect server that the session's flows, also those of other processes, talk to."""
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_LOCAL_STORAGE_PATH,
        PREFECT_LOGGING_LEVEL,
        temporary_settings,
    )

    storage = str(tmp_path_factory.mktemp("prefect"))
    with (
        shared(session_folder / "prefect-server", lambda: prefect_service(new_server_home())) as address,
        temporary_settings(
            {PREFECT_API_URL: address, PREFECT_LOCAL_STORAGE_PATH: storage, PREFECT_LOGGING_LEVEL: "CRITICAL"}
        ),
    ):
        yield address
        APILogHandler().flush()  # what is unsent when the server is gone costs a minute at the end of the process


@pytest.fixture(scope="session")
def served(new_server_home: Callable[[], Path]) -> Iterator[ServedHome]:
    """A home in which `coppice up` runs for the session's tests."""
    with coppice_up(new_server_home()) as home:
        yield home


@pytest.fixture(scope="session")
def mlflow_uri(
    session_folder: Path, tmp_path_factory: pytest.TempPathFactory, new_home: Callable[[], Path]
) -> Iterator[str]:
    """Address of one MLflow server for all tests that only talk to it."""

    def make() -> tuple[Service, str]:
        return mlflow_service(tmp_path_factory.mktemp("mlflow"), new_home() / "mlflow.db")

    with shared(session_folder / "mlflow-server", make) as address:
        yield address


@pytest.fixture(scope="session")
def scripted_home(
    prefect_api: str, new_home: Callable[[], Path], template: Callable[[Callable[[Path], None]], Path]
) -> Path:
    """The home of a small scripted run that nothing went wrong in: what all others must come to."""
    from run_fixtures import SCRIPTED, small_config

    from flows.self_training import self_training

    def scripted_run(folder: Path) -> None:
        home = new_home()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COPPICE_HOME", str(home))
            self_training(small_config(*SCRIPTED))
        shutil.copytree(home, folder, dirs_exist_ok=True)

    return template(scripted_run)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of the public datasets, ``gsm8k/train.parquet`` and so on; the test is skipped where there is none."""
    path = Path(os.environ.get("COPPICE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (path / "gsm8k" / "train.parquet").is_file():
        pytest.skip(f"no gsm8k/train.parquet in {path}; set COPPICE_TEST_DATA to the folder that holds gsm8k/")
    return path
