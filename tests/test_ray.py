"""Shards on a local Ray cluster of two worker processes: the same results as here, whoever is killed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import typer
from prefect import flow, task
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from run_fixtures import manifests, small_config

from deployments.interrupts import says_how_to_go_on
from pipeline_lib.config import ConfigError, PipelineConfig, RayConfig
from pipeline_lib.search.tree_files import read_trees_parquet, tree_to_dict
from pipeline_lib.store import Entry, Store
from pipeline_lib.types import Ref
from tasks.problems import draw_problems
from tasks.runtime.policies import base_policy
from tasks.runtime.runner import RunnerError, check_runner, ray_cluster, ray_tasks, run_each
from tasks.runtime.stage import Done, stage
from tasks.search import TREES, search_problems

SHARDS = 2
ON_RAY = ("runner=ray", "ray.gpus_per_shard=0.5")  # the same for all: Ray keeps workers with a GPU apart
SCRIPTED = ("policy.backend=scripted", "policy.max_batch=4", "problems.num_problems=60", "search.num_simulations=16")
TIME_LIMIT_S = 240.0


def on_a_cluster(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that needs the module's cluster and the session's Prefect server."""
    marked: Callable[..., None] = pytest.mark.usefixtures("prefect_api", "cluster")(test)
    return pytest.mark.slow(marked)


@flow(name="search-only")
def search_only(config: PipelineConfig) -> tuple[Ref, ...]:
    """The search of one iteration, in a flow of its own."""
    problems = draw_problems(config=config, iteration=1)
    return search_problems(config=config, problems=problems, policy=base_policy(config), iteration=1)


def search_in(home: Path, *overrides: str) -> tuple[Ref, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        patch.setenv("COPPICE_STORE", str(home / "store"))
        return search_only(small_config(f"search.num_shards={SHARDS}", *overrides))


@stage(lambda *, number: {"number": number}, run_name="die {number}")
def die(entry: Entry, *, number: int) -> Done:
    """Ends its process as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it lives")


@stage(lambda *, number: {"number": number}, run_name="sleep {number}")
def sleep_long(entry: Entry, *, number: int) -> Done:
    """Says that it has begun, and takes longer than anybody waits."""
    (entry.path / "begun").touch()
    time.sleep(120)
    return Done(0)


@contextmanager
def started(cluster: AbstractContextManager[None]) -> Iterator[None]:
    """Skips where Ray did not start on a machine that others keep busy: its own processes get 15 s."""
    with ExitStack() as stack:
        try:
            stack.enter_context(cluster)
        except RunnerError as error:
            if os.getloadavg()[0] > 3 * (os.cpu_count() or 1):
                pytest.skip(f"{os.getloadavg()[0]:.0f} processes want this machine: {error}")
            raise
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Callable[[], list[psutil.Process]]]:
    """Two cores of this machine as a Ray cluster, and what lists its processes; all are gone when it ends."""
    pytest.importorskip("prefect_ray")
    folder = tempfile.mkdtemp(prefix="ray-")  # pytest's own are too long for the names of sockets
    others = set(psutil.Process().children(recursive=True))

    def processes() -> list[psutil.Process]:
        return [child for child in psutil.Process().children(recursive=True) if child not in others]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # stages travel by name, also this file's
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # without one Ray writes one to the user's home
        with started(ray_cluster(None, num_cpus=2, num_gpus=1)):
            yield processes
            last = processes()
    _, alive = psutil.wait_procs(last, timeout=30)
    shutil.rmtree(folder, ignore_errors=True)
    assert alive == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all searches on the cluster: its workers are used again by tasks with the same environment."""
    return tmp_path_factory.mktemp("ray-home")


@contextmanager
def killing(home: Path) -> Iterator[list[list[bytes]]]:
    """Kills the worker of a shard that has three finished problems; yields the list that gets those problems."""
    kept: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: kept.append(kill_a_worker(home)))
    thread.start()
    yield kept
    thread.join(TIME_LIMIT_S)


def kill_a_worker(home: Path) -> list[bytes]:
    deadline = time.monotonic() + TIME_LIMIT_S
    while time.monotonic() < deadline:
        for path in home.glob("store/search-shard/*/.partial/trees.jsonl"):
            if len(whole_lines(path)) >= 3 and (worker := worker_on(path)):
                worker.send_signal(signal.SIGKILL)
                worker.wait(TIME_LIMIT_S)
                return whole_lines(path)
        time.sleep(0.2)
    raise AssertionError("no shard was searched")


def worker_on(path: Path) -> psutil.Process | None:
    """The process that appends to `path`, which is a Ray worker."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.name().startswith("ray::") and str(path) in {file.path for file in process.open_files()}:
                return process
    return None


def whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def check_kept(home: Path, refs: Sequence[Ref], kept: Sequence[bytes]) -> None:
    """Finished problems of a killed worker are in the result as they were, and were not searched again."""
    store = Store(home / "store")
    trees = {t.problem_id: tree_to_dict(t) for ref in refs for t in read_trees_parquet(store.open(ref) / TREES)}
    finished = [json.loads(line) for line in kept]
    assert [trees[tree["problem_id"]] for tree in finished] == finished
    assert sum(store.observations(ref)["num_resumed"] for ref in refs) >= len(finished) >= 3


@on_a_cluster
def test_two_workers_give_the_bytes_of_one_process(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def searched_here(*_: object, **__: object) -> None:
        raise AssertionError("a shard ran in the flow's own process")

    with monkeypatch.context() as patch:
        patch.setattr("tasks.search.search_trees", searched_here)
        refs = search_in(home, *ON_RAY)
    assert search_in(tmp_path) == refs
    assert manifests(tmp_path) == manifests(home)


@on_a_cluster
def test_what_is_there_is_not_sent_to_the_cluster_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = search_in(home, *ON_RAY)
    monkeypatch.setattr("tasks.runtime.runner.ray_cluster", None)
    assert search_in(home, *ON_RAY) == refs


@on_a_cluster
def test_each_shard_gets_its_share(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPPICE_HOME", str(home))
    monkeypatch.setenv("COPPICE_STORE", str(home / "store"))

    @task
    def surroundings() -> list[str]:
        return [os.environ[name] for name in ("COPPICE_HOME", "COPPICE_STORE", "CUDA_VISIBLE_DEVICES")]

    @flow
    def two() -> list[list[str]]:
        with ray_tasks(RayConfig(gpus_per_shard=0.5)) as runner:
            return [future.result() for future in [runner.submit(surroundings, {}) for _ in range(2)]]

    assert two() == [[str(home), str(home / "store"), "0"]] * 2


@on_a_cluster
def test_a_worker_gets_the_keys_and_no_log_of_ray_does(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPPICE_HOME", str(home))
    monkeypatch.setenv("COPPICE_STORE", str(home / "store"))
    model_key, server_key = f"model-{secrets.token_hex(8)}", f"prefect:{secrets.token_hex(8)}"
    monkeypatch.setenv("COPPICE_SERVER_API_KEY", model_key)  # the cluster's own processes were started without it

    @task
    def keys() -> tuple[str, str]:
        from pipeline_lib.config import Settings

        own, prefect = Settings().server_api_key, PREFECT_API_AUTH_STRING.value()
        assert own is not None, "the worker has no key of the model servers"
        return own.get_secret_value(), str(prefect)  # Prefect sends its secrets as plain texts

    @flow
    def ask() -> list[tuple[str, str]]:
        with ray_tasks(RayConfig(gpus_per_shard=0.5)) as runner:
            return [runner.submit(keys, {}).result() for _ in range(2)]

    with temporary_settings({PREFECT_API_AUTH_STRING: server_key}):
        assert ask() == [(model_key, server_key)] * 2
    files = [file for file in Path(os.environ["RAY_TMPDIR"]).rglob("*") if file.is_file()]
    assert [file for file in files if file.suffix in (".log", ".out", ".err")]
    for file in files:
        content = file.read_bytes()
        assert model_key.encode() not in content, file
        assert server_key.encode() not in content, file


@on_a_cluster
def test_more_than_this_machine_has_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"ray\.gpus_per_shard=2.* has 1 GPUs"):
        search_in(home, "runner=ray", "ray.gpus_per_shard=2", "seed=2")


@on_a_cluster
def test_nothing_listens_beyond_loopback(cluster: Callable[[], list[psutil.Process]]) -> None:
    addresses = set()
    for process in [psutil.Process(), *cluster()]:
        with suppress(psutil.NoSuchProcess):
            addresses |= {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


@on_a_cluster
def test_a_killed_worker_loses_nothing(home: Path, tmp_path: Path) -> None:
    with killing(home) as killed:
        refs = search_in(home, *ON_RAY, *SCRIPTED)
    [kept] = killed
    check_kept(home, refs, kept)
    assert search_in(tmp_path, *SCRIPTED) == refs


@on_a_cluster
def test_a_worker_that_dies_too_often_is_an_error_of_ours(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPPICE_HOME", str(home))
    monkeypatch.setenv("COPPICE_STORE", str(home / "store"))

    @flow
    def doomed(config: PipelineConfig) -> None:
        run_each(config, die, [{"number": 1}], name="doomed")

    with pytest.raises(RunnerError, match=r"^doomed: .*ray\.max_retries.* run again"):
        doomed(small_config(*ON_RAY, "ray.max_retries=0"))


@on_a_cluster
def test_a_terminated_run_does_not_wait_for_its_shards(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray lets no signal's exception through while it waits but Ctrl-C's: a batch system's SIGTERM was lost."""
    monkeypatch.setenv("COPPICE_HOME", str(home))
    monkeypatch.setenv("COPPICE_STORE", str(home / "store"))
    sent: list[float] = []

    @flow
    def long(config: PipelineConfig) -> None:
        run_each(config, sleep_long, [{"number": 1}], name="long")

    def terminate() -> None:
        deadline = time.monotonic() + TIME_LIMIT_S
        while time.monotonic() < deadline and not sent:
            time.sleep(1)  # once the shard has begun, the run waits for it
            if list(home.glob("store/sleep-long/*/begun")):
                sent.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(typer.Exit) as ended, says_how_to_go_on():
        long(small_config(*ON_RAY))
    assert ended.value.exit_code == 128 + signal.SIGTERM
    assert time.monotonic() - sent[0] < 10


def test_without_a_server_the_runner_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("runner=ray")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(ConfigError, match="PREFECT_API_URL"):
        check_runner(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"coppice-reasoning\[ray\]"):
        check_runner(config)
    check_runner(small_config())
