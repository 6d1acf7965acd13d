"""Addresses of files as databases, and the files behind such addresses, whatever characters their paths hold."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote

RESERVED = "?#%"  # in a database's address they begin a query, a fragment, an encoded character
AS_URI = "file:"


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
