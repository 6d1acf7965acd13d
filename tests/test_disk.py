from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_lib.store import Store
from pipeline_lib.store.disk import DiskFullError, explain_disk_full

FULL = "/dev/full"  # every write to it fails as on a full disk


def write_text(path: str) -> None:
    with open(path, "w") as stream:
        stream.write("x")


def write_parquet(path: str) -> None:
    pq.write_table(pa.table({"x": [1]}), path)


def fill_database(path: str) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 1")
    database.execute("CREATE TABLE t (x)")


@pytest.mark.skipif(not Path(FULL).exists(), reason="no /dev/full here")
@pytest.mark.parametrize("write", [write_text, write_parquet, fill_database])
def test_a_full_disk_is_named_in_one_line_whoever_met_it(write: Callable[[str], Any], tmp_path: Path) -> None:
    link = tmp_path / "full"  # what replaces a file would replace the device
    link.symlink_to(FULL)
    with pytest.raises(DiskFullError) as caught, explain_disk_full(tmp_path / "not" / "there", "search-shard"):
        write(str(link))
    line = (
        rf"disk full: no room for search-shard below {tmp_path}/not/there \(\d+\.\d MiB free\); make room, then retry"
    )
    assert re.match(line, str(caught.value))
    assert "\n" not in str(caught.value)


def fail_to_save() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise RuntimeError("could not save") from error


def test_the_innermost_cause_counts_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError), explain_disk_full(tmp_path, "x"):
        fail_to_save()
    with pytest.raises(FileNotFoundError), explain_disk_full(tmp_path, "x"):
        (tmp_path / "missing").read_text()


def test_what_could_not_be_written_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    entry = Store(tmp_path).entry("s", {}, version=1)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        entry.commit(0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
