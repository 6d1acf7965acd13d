"""Trees on disk: one JSON line each while the search runs, one Parquet file when it is done.

A line is whole or it does not count. Finished trees are appended, a process killed in the middle of a line leaves
a torn end, and whoever opens the file next drops just that end.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.store import write_parquet
from pipeline_lib.types import JsonDict, SearchTree

SYNC_INTERVAL_S = 1.0
TREES_FILE = "trees.parquet"  # what stages call the file of an iteration's trees
ARRAY_TYPES = {
    "prompt_token_ids": np.int32,
    "parents": np.int32,
    "visits": np.int32,
    "value_sums": np.float64,
    "outcomes": np.int8,
    "depths": np.int32,
    "end_token_ids": np.int32,
    "cutoffs": np.int8,
    "surprisals": np.float32,
}
PARQUET_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("policy_id", pa.string()),
        ("seed", pa.int64()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("parents", pa.list_(pa.int32())),
        ("steps", pa.list_(pa.string())),
        ("token_ids", pa.list_(pa.list_(pa.int32()))),
        ("visits", pa.list_(pa.int32())),
        ("value_sums", pa.list_(pa.float64())),
        ("outcomes", pa.list_(pa.int8())),
        ("depths", pa.list_(pa.int32())),
        ("tokens_generated", pa.int64()),
        ("tokens_kept", pa.int64()),
        ("num_timeouts", pa.int64()),
        ("end_token_ids", pa.list_(pa.int32())),
        ("cutoffs", pa.list_(pa.int8())),
        ("ignored", pa.list_(pa.int32())),
    ]
)
MEASURED_SCHEMA = PARQUET_SCHEMA.append(pa.field("surprisals", pa.list_(pa.float32())))  # of trees that have them
LATER_COLUMNS: JsonDict = {"end_token_ids": [], "cutoffs": [], "ignored": []}  # for those that 0.1.0 did not write
OPTIONAL_COLUMNS: JsonDict = LATER_COLUMNS | {"surprisals": []}


class TreeWriter:
    """Appends trees to a file, one line each; a torn last line is dropped on opening.

    Every `append` reaches the operating system at once, so killing the process loses nothing that
    was appended. The disk is waited for at most once a second and on closing: a power cut costs the
    trees of a second.

    Args:
        path: created when it is not there; its folder must be.

    Raises:
        ValueError: a line before the last is not a tree.

    Example: ``with TreeWriter(path) as writer: search_trees(..., on_tree=writer.append)``
    """

    def __init__(self, path: Path) -> None:
        _, num_bytes = _scan(path)
        self._file: BinaryIO = path.open("ab")
        self._file.truncate(num_bytes)
        self._synced = time.monotonic()

    def append(self, tree: SearchTree) -> None:
        """Adds one tree."""
        self._file.write(json.dumps(tree_to_dict(tree), separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced >= SYNC_INTERVAL_S:
            self._sync()

    def close(self) -> None:
        """Waits for the disk and closes the file; further calls do nothing."""
        if not self._file.closed:
            self._sync()
            self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> TreeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_trees(path: Path) -> list[SearchTree]:
    """The trees of a `TreeWriter`'s file in the order they were appended; none when there is no file.

    Raises:
        ValueError: a line before the last is not a tree.
    """
    trees, _ = _scan(path)
    return trees


def write_trees_parquet(trees: Iterable[SearchTree], path: Path) -> None:
    """Writes trees as one Parquet file, sorted by problem id: equal trees give equal bytes."""
    rows = [OPTIONAL_COLUMNS | tree_to_dict(tree) for tree in sorted(trees, key=lambda tree: tree.problem_id)]
    schema = MEASURED_SCHEMA if any(row["surprisals"] for row in rows) else PARQUET_SCHEMA
    write_parquet(pa.Table.from_pylist(rows, schema=schema), path)


def read_trees_parquet(path: Path, problem_ids: Collection[str] | None = None) -> list[SearchTree]:
    """The trees of a file by `write_trees_parquet`, sorted by problem id.

    Args:
        path: a file that `write_trees_parquet` wrote.
        problem_ids: the trees that are wanted; None takes all.

    Raises:
        ValueError: the file has other columns.
    """
    wanted = None if problem_ids is None else [("problem_id", "in", sorted(problem_ids))]
    table = pq.read_table(path, filters=wanted)
    missing = OPTIONAL_COLUMNS.keys() - set(table.column_names)
    if not table.schema.equals(pa.schema([column for column in MEASURED_SCHEMA if column.name not in missing])):
        raise ValueError(f"{path}: not a file of search trees; its columns are {', '.join(table.column_names)}")
    return [tree_from_dict(row) for row in table.to_pylist()]


def read_roots(path: Path) -> list[tuple[str, int, float, int]]:
    """(problem id, rollouts, sum of their rewards, nodes) of every tree; fast, as only roots are read."""
    table = pq.read_table(path, columns=["problem_id", "visits", "value_sums"])
    firsts = [pc.list_element(table.column(name), 0).to_pylist() for name in ("visits", "value_sums")]
    sizes = pc.list_value_length(table.column("visits")).to_pylist()
    return list(zip(table.column("problem_id").to_pylist(), *firsts, sizes, strict=True))


def read_counts(path: Path) -> dict[str, int]:
    """Rollouts, tokens and timeouts of all trees together by name; as fast as `read_roots`."""
    names = ["tokens_generated", "tokens_kept", "num_timeouts"]
    table = pq.read_table(path, columns=["visits", *names])
    rollouts = pc.sum(pc.list_element(table.column("visits"), 0)).as_py()
    return {"num_rollouts": rollouts or 0} | {name: pc.sum(table.column(name)).as_py() or 0 for name in names}


def tree_to_dict(tree: SearchTree) -> JsonDict:
    """Plain lists and numbers under the names of `SearchTree`'s fields; surprisals where they were asked for."""
    arrays = [name for name in ARRAY_TYPES if name != "surprisals" or len(tree.surprisals)]
    return {
        "problem_id": tree.problem_id,
        "policy_id": tree.policy_id,
        "seed": tree.seed,
        **{name: getattr(tree, name).tolist() for name in arrays},
        "steps": list(tree.steps),
        "token_ids": [ids.tolist() for ids in tree.token_ids],
        "tokens_generated": tree.tokens_generated,
        "tokens_kept": tree.tokens_kept,
        "num_timeouts": tree.num_timeouts,
        "ignored": list(tree.ignored),
    }


def tree_from_dict(row: JsonDict) -> SearchTree:
    """The inverse of `tree_to_dict`; what it does not always give may be missing.

    Raises:
        TypeError, KeyError: a field is missing or unknown.
    """
    fields: dict[str, Any] = OPTIONAL_COLUMNS | row
    fields |= {name: np.array(fields[name], dtype=dtype) for name, dtype in ARRAY_TYPES.items()}
    fields["ignored"] = tuple(fields["ignored"])
    fields["steps"] = tuple(row["steps"])
    fields["token_ids"] = tuple(np.array(ids, dtype=np.int32) for ids in row["token_ids"])
    return SearchTree(**fields)


def _scan(path: Path) -> tuple[list[SearchTree], int]:
    """Every whole tree in the file, and how many bytes they take."""
    trees: list[SearchTree] = []
    num_bytes = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                break
            trees.append(tree_from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not a search tree; delete the file to search again") from None
            break
        num_bytes += len(line)
    return trees, num_bytes
