"""Environment variables that Prefect, MLflow and others read once, when they are imported.

Every value is only a default: whoever sets the variable decides.
"""

from __future__ import annotations

import os

from pipeline_lib.config import Settings


def prepare_environment(settings: Settings, *, debug: bool = False) -> None:
    """Sets defaults for Prefect, MLflow and Hugging Face; call it before a flow is imported.

    Results of tasks go below the home, nothing reports usage to anybody, and Prefect's own log
    stays off the terminal unless `debug`: the progress bar and the closing table say it better.
    """
    defaults = {
        "PREFECT_LOCAL_STORAGE_PATH": str(settings.home.resolve() / "prefect"),
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
    exempt_loopback()


def exempt_loopback() -> None:
    """Tells every library that no proxy has business on loopback, where Prefect and MLflow answer."""
    for name in ("NO_PROXY", "no_proxy"):
        named = [host.strip() for host in os.environ.get(name, "").split(",") if host.strip()]
        os.environ[name] = ",".join(dict.fromkeys([*named, "127.0.0.1", "localhost"]))
