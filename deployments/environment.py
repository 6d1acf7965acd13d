"""What the libraries below must be told before they are imported; they read it only once.

One idea: every value is a default. Whoever sets the variable decides.
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
