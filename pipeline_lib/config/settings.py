"""Where things live: the home, the store, the servers, databases. Read from the environment, part of no result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline_lib.config.group import ConfigError

TRACKING_VARIABLES = ("COPPICE_TRACKING_URI", "MLFLOW_TRACKING_URI")
"""The first one that is set counts; the second is MLflow's own."""
RESERVED = "?#%"  # in a database's address they begin a query, a fragment, an encoded character
AS_URI = "file:"


class EnvironmentSettings(BaseSettings):
    """Settings from variables with the prefix ``COPPICE_``; an empty one counts as not set.

    Raises:
        ConfigError: a variable has a value that cannot be read; the message names it.
    """

    model_config = SettingsConfigDict(env_prefix="COPPICE_", env_ignore_empty=True, frozen=True, populate_by_name=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            variable = name if name.startswith("COPPICE_") else f"COPPICE_{name.upper()}"
            raise ConfigError(f"{variable}={first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


class Settings(EnvironmentSettings):
    """Where things live."""

    home: Path = Field(Path(".coppice"), description="Store, tracking database, artifacts, orchestrator results.")
    store: str | None = Field(
        None, description="Results of the stages: a shared folder, or s3://… or gs://…; None is a folder below home."
    )
    tracking_uri: str | None = Field(
        None,
        validation_alias=AliasChoices(*TRACKING_VARIABLES),
        description="MLflow server, or another place that MLflow knows; None uses a database below home.",
    )
    ray_address: str | None = Field(
        None,
        validation_alias=AliasChoices("COPPICE_RAY_ADDRESS", "RAY_ADDRESS"),
        description="Ray cluster for runner=ray; None starts one on this machine for as long as a search takes.",
    )
    server_api_key: SecretStr | None = Field(None, description="Key of the servers behind policy.backend=server.")
    lock_wait_s: float = Field(
        -1.0,
        description="Seconds to wait for another run that makes the same result, before it is an error; "
        "below 0 without end.",
    )
    tracking_patience_s: float = Field(
        1800, ge=0, le=10800, description="Seconds that a task waits for an MLflow server that does not answer."
    )

    store_patience_s: float = Field(
        1800, ge=0, le=10800, description="Seconds that a read or write waits for an object store that does not answer."
    )

    @property
    def tracking_variable(self) -> str | None:
        """The environment variable that names the tracking server; None where none does."""
        named = (name for name in TRACKING_VARIABLES if os.environ.get(name) == self.tracking_uri)
        return next(named, None) if self.tracking_uri else None

    @property
    def store_root(self) -> Path:
        """The folder that holds the entries, or this machine's copies of those in the object store."""
        if self.store is None or self.object_store is not None:
            return self.home.resolve() / "store"
        folder = unquote(self.store.removeprefix("file://")) if self.store.startswith("file://") else self.store
        return Path(folder).expanduser().resolve()

    @property
    def object_store(self) -> str | None:
        """The URI of a store that is no folder."""
        is_folder = self.store is None or "://" not in self.store or self.store.startswith("file://")
        return None if is_folder else self.store

    @property
    def store_uri(self) -> str:
        """Where the entries are, for those who look from elsewhere."""
        return self.object_store or str(self.store_root)


def sqlite_uri(file: Path, *, scheme: str = "sqlite") -> str:
    """The SQLAlchemy address of a SQLite database.

    A path with characters that mean something in an address is handed to SQLite as a URI, which encodes them.

    Args:
        file: an absolute path.
        scheme: with the driver, if it is not SQLAlchemy's own: ``sqlite+aiosqlite``.

    Example: ``/a b/mlflow.db`` has the address ``sqlite:////a b/mlflow.db``, ``/a?/mlflow.db`` has
    ``sqlite:///file:/a%3F/mlflow.db?uri=true``.
    """
    if any(character in str(file) for character in RESERVED):
        return f"{scheme}:///{AS_URI}{quote(str(file))}?uri=true"
    return f"{scheme}:///{file}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite address; None for any other address, and for a database in memory."""
    scheme, _, rest = uri.partition(":///")
    path = rest.partition("?")[0]
    if scheme.partition("+")[0] != "sqlite" or not path or ":memory:" in path:
        return None
    return Path(unquote(path.removeprefix(AS_URI)) if path.startswith(AS_URI) else path)
