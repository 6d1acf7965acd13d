"""The way to MLflow: address, clients and experiment.

The only file that imports MLflow, and late, as that takes seconds; the others get a client and MLflow's modules as
arguments.
"""

from __future__ import annotations

import logging
import os
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipeline_lib.config import Settings, sqlite_uri
from pipeline_lib.tracking.outage import ErrorTranslatingClient

EXPERIMENT = "coppice"
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Sent again blindly, a request whose answer was lost makes a second run; a task that is tried again looks first.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


def tracking_uri(settings: Settings) -> str:
    """The MLflow server of `settings`, or the database below its home."""
    return settings.tracking_uri or sqlite_uri(settings.home.resolve() / "mlflow.db")


def page_url(settings: Settings, link: str) -> str | None:
    """The address of a page of the tracking server, without credentials; None without a server.

    Example: with the server ``http://me:secret@host:5000`` and ``#/experiments/1`` it is
    ``http://host:5000/#/experiments/1``.
    """
    uri = urlsplit(tracking_uri(settings))
    if not uri.scheme.startswith("http"):
        return None
    place = uri.netloc.rpartition("@")[2]
    return urlunsplit((uri.scheme, place, f"{uri.path.rstrip('/')}/", "", link.removeprefix("#")))


def check_tracking_server(settings: Settings) -> None:
    """Asks the tracking server or database for the experiment, and makes it if it is not there.

    Raises:
        TrackingError: it does not answer, or refuses.
    """
    find_experiment(open_client(settings), settings)


def import_mlflow() -> Any:
    """MLflow itself, imported late (it takes seconds) and told to be silent."""
    # Read while MLflow is imported: nothing leaves the machine unasked, nothing is printed into our output.
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def open_client(settings: Settings) -> Any:
    """A client of the tracking server, or of the database below the home, as `outage.ErrorTranslatingClient`."""
    uri = tracking_uri(settings)
    if not settings.tracking_uri:
        settings.home.mkdir(parents=True, exist_ok=True)
    mlflow = import_mlflow()
    for name in ("alembic", "mlflow"):  # a new database logs every one of its migrations; importing sets the level
        logging.getLogger(name).setLevel(logging.WARNING)
    return ErrorTranslatingClient(mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri), uri)


def open_tracing_client(settings: Settings) -> Any:
    """A client for traces, which MLflow keeps apart from its other client."""
    from mlflow.tracing.client import TracingClient

    uri = tracking_uri(settings)
    return ErrorTranslatingClient(TracingClient(uri), uri)


def open_database(settings: Settings) -> Any:
    """MLflow's own access to a local database, which alone removes rows for good, as ``mlflow gc`` does."""
    from mlflow.tracing.client import TracingClient

    return TracingClient(tracking_uri(settings)).store


def find_experiment(client: Any, settings: Settings) -> str:
    """The experiment that all runs lie in, made if it is not there."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = None if settings.tracking_uri else (settings.home.resolve() / "mlartifacts").as_uri()
    # Without the kind, the UI opens the experiment in its view for traces, which is empty here.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(client.create_experiment(EXPERIMENT, location, kind))
    except import_mlflow().exceptions.MlflowException:
        if (experiment := client.get_experiment_by_name(EXPERIMENT)) is None:
            raise
        return str(experiment.experiment_id)  # another run has made it in this moment
