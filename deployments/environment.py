"""Environment variables that Prefect, MLflow and others read once, when they are imported.

Every value is only a default: whoever sets the variable decides.
"""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

from pipeline_lib.config import Settings

STARTED_BY = "COPPICE_STARTED_BY"
TEMPORARY_SERVER = "prefect.server.api.server:create_app"


def prepare_environment(settings: Settings, *, debug: bool = False) -> None:
    """Sets defaults for Prefect, MLflow and Hugging Face; call it before a flow is imported.

    Results of tasks go below the home, nothing reports usage to anybody, and Prefect's own log
    stays off the terminal unless `debug`: the progress bar and the closing table say it better.
    Servers of runs that were killed are ended first.
    """
    defaults = {
        "PREFECT_LOCAL_STORAGE_PATH": str(settings.home.resolve() / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 9 s alone, many times that on a busy machine
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "NOTSET" if debug else "CRITICAL",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TORCH_CPP_LOG_LEVEL": "WARNING" if debug else "ERROR",
        "TOKENIZERS_PARALLELISM": "false",  # its threads and our worker processes do not mix
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    end_orphaned_servers(settings)


def end_orphaned_servers(settings: Settings) -> int:
    """Ends the temporary Prefect servers of runs below this home that were killed; returns how many.

    Without ``PREFECT_API_URL`` Prefect starts a server with each run and ends it at the run's exit. Nobody does after
    SIGKILL, and each costs a few per cent of a core for ever. One belongs to a living run if its parent is the process
    that marked its environment, or was itself started by that one.
    """
    home, ended = str(settings.home.resolve()), 0
    for server in psutil.process_iter():
        with suppress(psutil.Error):  # it has just ended, or is somebody else's
            if TEMPORARY_SERVER not in server.cmdline():
                continue
            mark, parent = server.environ().get(STARTED_BY, ""), server.parent()
            if mark.partition(" ")[2] == home and not _belongs_to_run(parent, mark):
                server.terminate()
                ended += 1
    os.environ[STARTED_BY] = f"{os.getpid()} {home}"
    return ended


def _belongs_to_run(parent: psutil.Process | None, mark: str) -> bool:
    """Whether a server's parent is the process that set the mark, or one that it started."""
    if parent is None:
        return False
    if parent.pid == int(mark.partition(" ")[0]):
        return True
    try:
        environment: dict[str, str] = parent.environ()
        return environment.get(STARTED_BY) == mark
    except psutil.Error:  # of another user: what orphans fall to
        return False
