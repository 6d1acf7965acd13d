"""`coppice run` in a process of its own that starts at once: it is forked from one that has imported everything."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "deployments.command.app",
        "flows.self_training",
        "mlflow.store.tracking.sqlalchemy_store",
        "peft",
        "prefect.flow_engine",
        "transformers.models.qwen2.modeling_qwen2",
    ]
)


def start_run(home: Path, api: str, *settings: str) -> ForkServerProcess:
    """The preset `tiny` with `settings`; see `output_of` and ``summary.json`` in the home."""
    process = FORKS.Process(target=_run, args=(str(home), api, settings))
    process.start()
    return process


def start_in_terminal(environment: Mapping[str, str], output: Path, *arguments: str) -> ForkServerProcess:
    """`coppice` as a shell starts it, a process group of its own, with stages that `faulty_flow` can hold up."""
    process = FORKS.Process(target=_run_in_terminal, args=(dict(environment), str(output), arguments))
    process.start()
    return process


def warm_up() -> None:
    """Returns once everything is imported: what is timed afterwards is a run, not that."""
    process = FORKS.Process(target=int)
    process.start()
    process.join()


def output_of(home: Path) -> str:
    """What the latest run printed."""
    return (home / "output.txt").read_text(encoding="utf-8")


def _run(home: str, api: str, settings: tuple[str, ...]) -> None:
    output = os.open(f"{home}/output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["COPPICE_HOME"] = home
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    sys.argv = ["coppice", "run", "--preset", "tiny", *arguments, "--summary", f"{home}/summary.json"]
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from deployments.command.app import main

    with temporary_settings({PREFECT_API_URL: api}):  # Prefect was imported, and read its environment, before the fork
        main()


def _run_in_terminal(environment: dict[str, str], output: str, arguments: tuple[str, ...]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests themselves run in the background
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.update(environment)
    os.environ.pop("PREFECT_API_URL", None)
    sys.argv = ["coppice", *arguments]
    import faulty_flow  # noqa: F401  it reads its environment now

    from deployments.command.app import main

    main()
