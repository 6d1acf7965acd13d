"""Whether results can be kept where the settings say, told before any work: the folders, and the servers' addresses."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import urlsplit

from pipeline_lib.config import ConfigError, Settings, sqlite_file

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")  # a driver may follow: postgresql+psycopg2
OTHERS = ("file", "databricks", "uc")


def check_places(settings: Settings) -> None:
    """Raises ConfigError where a folder cannot be written, or an address is none; no server is asked."""
    _require_folder("COPPICE_HOME", settings.home)
    if settings.object_store is not None:
        _check_protocol(settings.object_store)
    elif settings.store is not None:
        _require_folder("COPPICE_STORE", settings.store_root)
    if settings.tracking_uri is not None:
        _check_tracking_uri(settings.tracking_uri)


def _require_folder(variable: str, folder: Path) -> None:
    """The folder can be written, or made where it is missing."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if _is_there(place))
    if not existing.is_dir():
        raise ConfigError(f"{variable}={folder}: {existing} is no folder; name one that can be written")
    try:
        TemporaryFile(dir=existing).close()
    except OSError as error:
        why = f"{existing} cannot be written ({error.strerror})"
        raise ConfigError(f"{variable}={folder}: {why}; name a folder that can") from None


def _is_there(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:  # below a file, or where nobody may look
        return False


def _check_protocol(uri: str) -> None:
    from fsspec import available_protocols

    if uri.partition("://")[0] not in available_protocols():
        raise ConfigError(
            f"COPPICE_STORE={uri}: fsspec knows no such protocol; name a folder, or s3://BUCKET/FOLDER, gs://…"
        )


def _check_tracking_uri(uri: str) -> None:
    """It is an address that MLflow, or one of its plugins, knows."""
    from pipeline_lib.tracking.outage import without_password

    name = f"COPPICE_TRACKING_URI={without_password(uri)}"
    scheme = urlsplit(uri).scheme.partition("+")[0]
    plugins = {point.name for point in entry_points(group="mlflow.tracking_store")}
    if scheme not in (*SERVERS, *DATABASES, *OTHERS, *plugins):
        raise ConfigError(
            f"{name}: no address of an MLflow server; it looks like http://HOST:5000, postgresql://… or "
            "sqlite:////FOLDER/mlflow.db"
        )
    if scheme in SERVERS and not _names_a_host(uri):
        raise ConfigError(f"{name}: names no host; it looks like http://HOST:5000")
    file = sqlite_file(uri)
    if file is not None:
        _require_folder("COPPICE_TRACKING_URI", file.parent)


def _names_a_host(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number
        return False
