"""Where the shards of a search run: one after another in this process, or each as a Ray task.

One idea: the store decides. A shard whose result is there is sent nowhere; one whose worker died is started again by
Ray and goes on from its finished problems. So neither the runner nor the cluster is part of any result.

Ray is held only while shards run: the engines of idle workers would keep their memory while this process trains.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from pipeline_lib.config import ConfigError, PipelineConfig, RayConfig, Settings
from pipeline_lib.distribution import missing_module
from pipeline_lib.types import Ref
from tasks.runtime.engines import engines
from tasks.runtime.progress import Progress
from tasks.runtime.stage import Stage, is_looking_only

if TYPE_CHECKING:
    from prefect import State
    from prefect.task_runners import TaskRunner

Call = Mapping[str, Any]
LOGGER = logging.getLogger("coppice.progress")
LOCK_WAIT_S = 120  # the locks of a machine that is gone live on a file server for its lease, 90 s as a rule
OBJECT_STORE_BYTES = 128 << 20  # only arguments and references pass through it
KEYS = ("COPPICE_SERVER_API_KEY", "HF_TOKEN")  # of model servers, and of gated models on the hub
START_ATTEMPTS = 3  # Ray gives its helper processes 15 s to start, too little on a busy machine


class RunnerError(RuntimeError):
    """Ray could not do what it was asked; the message is one line and says what to do."""


def run_each(config: PipelineConfig, stage: Stage[..., Ref], calls: Sequence[Call], *, name: str) -> tuple[Ref, ...]:
    """The stage's reference for every call, in order.

    Args:
        config: ``runner`` says where the shards run, ``ray`` what each gets.
        stage: what runs.
        calls: the stage's arguments, shard by shard.
        name: what all shards are together, as people read it.

    Raises:
        RunnerError: no cluster, or a shard lost its worker too often; what the other shards finished is kept.
    """
    if config.runner == "local" or is_looking_only():
        return tuple(stage(**call) for call in calls)
    missing = [call for call in calls if not stage.entry(**call).is_whole()]
    if missing:
        check_runner(config)
        _run_on_ray(config.ray, stage, missing, name)
    return tuple(stage.entry(**call).ref() if call in missing else stage(**call) for call in calls)


def check_runner(config: PipelineConfig) -> None:
    """Raises ConfigError where the runner lacks what it needs."""
    if config.runner == "local":
        return
    if missing := missing_module("ray", "prefect_ray"):
        raise ConfigError(f"runner=ray: {missing}")
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value() is None:  # each worker would start a server of its own
        raise ConfigError(
            "runner=ray: the workers need a Prefect server; start one with `prefect server start` and set "
            "PREFECT_API_URL to an address that they reach, http://127.0.0.1:4200/api on one machine"
        )


def _run_on_ray(config: RayConfig, stage: Stage[..., Ref], calls: Sequence[Call], name: str) -> None:
    from prefect.futures import as_completed

    engines.close()  # workers on this machine need the memory
    with ray_tasks(config) as runner:
        futures = [stage.submit(runner, **call) for call in calls]
        progress = Progress(name, len(futures))
        # All of them, also after a failure: what they finish is kept. Not by `future.wait`, in which Ray lets no signal
        # through but Ctrl-C's.
        for future in as_completed(futures):
            future.wait()
            progress.advance()
        failed = [future for future in futures if not future.state.is_completed()]
    for future in failed:
        if future.state.is_crashed():
            raise RunnerError(f"{name}: {_reason(future.state, config)}; run again, finished problems are kept")
        future.result()


def _reason(state: State[Any], config: RayConfig) -> str:
    """What Ray said of a task that it could not bring to its end: the error is on the last line of its report."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    error = state.result(raise_on_failure=False)
    if isinstance(error, (NodeDiedError, OutOfMemoryError, WorkerCrashedError)):
        return f"a worker died and was replaced {config.max_retries} times (ray.max_retries); Ray's log says why"
    return f"Ray: {str(error).strip().splitlines()[-1]}"


@contextmanager
def ray_tasks(config: RayConfig) -> Iterator[TaskRunner[Any]]:
    """A task runner whose tasks get their share of the cluster, and find the same store.

    Raises:
        ConfigError: this machine has less than a shard asks for.
        RunnerError: there is no cluster.
    """
    settings = Settings()
    with ray_cluster(settings.ray_address):
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options

        _check_capacity(config, may_grow=settings.ray_address is not None)
        environment = {"COPPICE_HOME": str(settings.home.resolve()), "COPPICE_LOCK_WAIT_S": str(LOCK_WAIT_S)}
        if settings.store is not None:
            environment["COPPICE_STORE"] = settings.store_uri
        share = {"num_cpus": config.cpus_per_shard, "num_gpus": config.gpus_per_shard}
        retries = {"max_retries": config.max_retries}
        options = remote_options(**share, **retries, runtime_env={"env_vars": environment})
        with RayTaskRunner() as runner, options:
            hand_keys_to(runner)
            yield runner


def hand_keys_to(runner: TaskRunner[Any]) -> None:
    """Lets tasks find this process's keys in the environment of their worker, where that has none of its own.

    They travel inside of the function that Ray calls: a runtime environment stands in Ray's logs and on its pages, and
    a task's arguments may be shown. The key of Prefect's server is in the settings that Prefect sends along.

    Args:
        runner: a `RayTaskRunner`, changed in place.
    """
    keys = {name: os.environ[name] for name in KEYS if os.environ.get(name)}
    run_task = getattr(runner, "_run_prefect_task")  # noqa: B009 - TaskRunner has none

    def run_with_keys(*references: Any, **call: Any) -> Any:
        with missing_set(keys):
            return run_task(*references, **call)

    runner._run_prefect_task = run_with_keys  # type: ignore[attr-defined]  # of RayTaskRunner


@contextmanager
def missing_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables that are not set, while the block runs."""
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def ray_cluster(address: str | None, *, num_cpus: int | None = None, num_gpus: int | None = None) -> Iterator[None]:
    """Connects to a cluster while the block runs; a connection that is open already is used and left open.

    Args:
        address: None starts a cluster on this machine's loopback, which ends with the block.
        num_cpus: cores of such a cluster; None takes all.
        num_gpus: GPUs of such a cluster; None takes all.

    Raises:
        RunnerError: there is no cluster at `address`, or none could be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # The one switch that keeps Ray's ports on loopback, on Linux too; read when Ray is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    with _keeping_sigterm():
        if address is None:
            _start(num_cpus, num_gpus)
        else:
            _connect(address)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    import ray

    try:
        ray.init(address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunnerError(
            f"runner=ray: no cluster answers at {address}: {reason}; one that has a token wants RAY_AUTH_MODE=token"
        ) from None


def _start(num_cpus: int | None, num_gpus: int | None) -> None:
    import ray

    own = psutil.Process()
    for attempt in range(START_ATTEMPTS):
        others = set(own.children(recursive=True))
        try:
            ray.init(
                "local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=OBJECT_STORE_BYTES,
            )
            return
        except Exception as error:  # Ray has no class for it
            ray.shutdown()
            for left in set(own.children(recursive=True)) - others:  # nobody else would end them before we end
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            reason = " ".join(str(error).split())
            if attempt == START_ATTEMPTS - 1:
                raise RunnerError(f"runner=ray: Ray did not start in {START_ATTEMPTS} attempts: {reason}") from error


def _check_capacity(config: RayConfig, *, may_grow: bool) -> None:
    """Ray waits without end for a machine that a task fits on: right where machines can still come, not here."""
    import ray

    for dial, resource in (("cpus_per_shard", "CPU"), ("gpus_per_shard", "GPU")):
        most = max(node["Resources"].get(resource, 0.0) for node in ray.nodes() if node["Alive"])
        if getattr(config, dial) <= most:
            continue
        text = f"ray.{dial}={getattr(config, dial):g}: the largest machine has {most:g}"
        if not may_grow:
            raise ConfigError(f"{text} {resource}s; lower it")
        LOGGER.warning(f"{text} {resource}s; waiting for a larger one to join the cluster")


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Puts back the handler that Ray replaces: with it, Prefect ends a run that is cancelled."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
