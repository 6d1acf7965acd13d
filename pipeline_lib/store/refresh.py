"""Which finished results are made again on demand, and which of them have been, so that a kill repeats none."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline_lib.store.files import read_json, write_json


class Refresh:
    """Results that are to be made again once, though the store has them.

    Args:
        file: keeps what has been made again; where an earlier process was killed it goes on from there.
        stages: names of the stages whose results are wanted anew.
    """

    def __init__(self, file: Path, stages: Collection[str]) -> None:
        self._file, self.stages = file, frozenset(stages)
        kept: dict[str, Any] = read_json(file) if file.is_file() else {"id": uuid.uuid4().hex[:12], "done": []}
        self.id: str = kept["id"]
        self._done: set[str] = set(kept["done"])
        file.parent.mkdir(parents=True, exist_ok=True)
        self._keep()

    def wants(self, uri: str) -> bool:
        """Whether an entry is still to be made again.

        Args:
            uri: the entry's, which begins with its stage.
        """
        return uri.partition("/")[0] in self.stages and uri not in self._done

    def has_made(self, uri: str) -> None:
        """Remembers that an entry is made."""
        self._done.add(uri)
        self._keep()

    def end(self) -> None:
        """Forgets all: the next one begins anew."""
        self._file.unlink(missing_ok=True)

    def _keep(self) -> None:
        write_json(self._file, {"id": self.id, "done": sorted(self._done)})
