import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.config import SearchConfig
from pipeline_lib.store import Store, StoreError, canonical_json, read_json, write_json, write_parquet
from pipeline_lib.store.local import OWNER
from pipeline_lib.store.refresh import Refresh
from pipeline_lib.types import Ref


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def fill(entry, text="content", num_rows=3, observations=None):
    (entry.path / "rows.txt").write_text(text)
    (entry.path / "weights").mkdir(exist_ok=True)
    (entry.path / "weights" / "a.bin").write_bytes(b"\x00\x01")
    return entry.commit(num_rows, observations)


def overwrite(path, text):
    """Writes `text`; the time stamp moves on even where the clock is coarse."""
    before = path.stat().st_mtime_ns
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_an_entry_is_complete_from_its_commit_on(store):
    entry = store.entry("search", {"seed": 0}, version=1)
    assert entry.path.is_dir()
    assert not entry.is_complete()
    ref = fill(entry)
    assert entry.is_complete()
    assert store.is_complete(ref)
    assert store.open(ref) == entry.path == store.root / ref.uri
    assert ref == entry.ref()
    assert (ref.num_rows, ref.schema_version, ref.uri.split("/")[0]) == (3, 1, "search")


def test_the_manifest_lists_relative_names_sizes_and_digests_and_nothing_else(store):
    entry = store.entry("s", {}, version=1)
    fill(entry)
    manifest = read_json(entry.path / "manifest.json")
    assert sorted(manifest) == ["files", "num_rows", "schema_version"]
    assert {name: info["size"] for name, info in manifest["files"].items()} == {"rows.txt": 7, "weights/a.bin": 2}


def test_the_key_hangs_on_stage_spec_inputs_and_version(store):
    inputs = [Ref(uri=f"a/{i}", sha256=str(i) * 64, num_rows=0, schema_version=1) for i in range(2)]
    entries = [
        store.entry("s", {"a": 1}, version=1),
        store.entry("t", {"a": 1}, version=1),
        store.entry("s", {"a": 2}, version=1),
        store.entry("s", {"a": 1}, version=2),
        store.entry("s", {"a": 1}, inputs, version=1),
        store.entry("s", {"a": 1}, inputs[::-1], version=1),
    ]
    assert len({entry.uri for entry in entries}) == len(entries)
    moved = inputs[0].model_copy(update={"uri": "elsewhere"})
    assert store.entry("s", {"a": 1}, [moved, inputs[1]], version=1).uri == entries[4].uri


def test_a_spec_is_compared_by_value(store):
    left = store.entry("s", {"a": (1, 2), "search": SearchConfig()}, version=1)
    right = store.entry("s", {"search": SearchConfig().model_dump(), "a": [1, 2]}, version=1)
    assert left.uri == right.uri


def test_the_same_content_gives_the_same_reference_wherever_and_whenever(tmp_path):
    def make(name, observations):
        return fill(Store(tmp_path / name).entry("s", {"x": 1}, version=1), observations=observations)

    assert make("a", {"seconds": 1.5}).model_dump_json() == make("b", {"seconds": 9.0}).model_dump_json()


def test_observations_lie_outside_the_digest(store):
    entry = store.entry("s", {}, version=1)
    assert entry.observations() == {}
    first = fill(entry, observations={"seconds": 1.0})
    assert store.observations(first) == {"seconds": 1.0}
    assert fill(entry, observations={"seconds": 2.0}) == first
    assert entry.observations() == {"seconds": 2.0}


def test_partial_work_lies_outside_the_digest_and_is_dropped_on_commit(store):
    bare = fill(store.entry("s", {}, version=1))
    entry = store.entry("s", {}, version=1)
    (entry.path / ".partial" / "checkpoint").mkdir(parents=True)
    (entry.path / ".partial" / "checkpoint" / "x").write_text("half")
    assert entry.commit(3) == bare
    assert not (entry.path / ".partial").exists()


def test_a_commit_that_fails_keeps_the_partial_work(store, monkeypatch):
    entry = store.entry("s", {}, version=1)
    (entry.path / ".partial").mkdir()
    (entry.path / ".partial" / "trees.jsonl").write_text("hours of work")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        fill(entry)
    monkeypatch.undo()
    assert not entry.is_complete()
    assert (entry.path / ".partial" / "trees.jsonl").read_text() == "hours of work"
    clean = fill(Store(store.root.parent / "clean").entry("s", {}, version=1))
    assert fill(entry) == clean  # what the failed attempt left behind is not part of it


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "rows.txt").unlink(),
        lambda path: (path / "rows.txt").write_text("cont"),
        lambda path: (path / "weights" / "a.bin").write_bytes(b"\x00\x01\x02"),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text('{"files": {"rows'),
        lambda path: (path / "manifest.json").write_text("[]"),
        lambda path: (path / "manifest.json").write_text('{"files": {"rows.txt": 7}}'),
        lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"),
    ],
    ids=["removed", "torn", "grown", "no manifest", "torn manifest", "a list", "no sizes", "not UTF-8"],
)
def test_a_damaged_entry_is_incomplete_and_refused_in_one_line(store, damage):
    entry = store.entry("s", {}, version=1)
    ref = fill(entry)
    damage(entry.path)
    assert not entry.is_complete()
    assert not store.is_complete(ref)
    with pytest.raises(StoreError, match=f"{ref.uri} is missing or incomplete below .*; run its stage again$") as error:
        store.open(ref)
    assert "\n" not in str(error.value)
    with pytest.raises(StoreError, match=f"{ref.uri} is not complete; run its stage again$"):
        entry.ref()
    assert fill(entry) == ref  # running the stage again mends it


def test_a_file_changed_at_equal_size_is_refused_by_name(store):
    entry = store.entry("s", {}, version=1)
    ref = fill(entry)
    store.open(ref)
    overwrite(entry.path / "rows.txt", "CONTENT")
    with pytest.raises(
        StoreError, match=rf"{ref.uri}/rows\.txt was changed; remove {ref.uri} and run its stage again$"
    ):
        store.open(ref)


def test_a_reference_to_other_content_is_refused(store):
    entry = store.entry("s", {}, version=1)
    old = fill(entry, "first")
    new = fill(entry, "second")
    assert new.sha256 != old.sha256
    with pytest.raises(StoreError, match=f"holds {new.sha256[:12]}, not {old.sha256[:12]}; remove it"):
        store.open(old)
    assert store.open(new) == entry.path


def test_an_entry_under_work_is_refused_to_others_in_one_line_and_free_afterwards(store):
    entry, other = (store.entry("s", {"x": 1}, version=1) for _ in range(2))
    with entry.lock():
        with (
            pytest.raises(StoreError, match=f"{entry.uri} is being made by another process; .* run again$"),
            other.lock(),
        ):
            pass
        with store.entry("s", {"x": 2}, version=1).lock():
            ref = fill(entry)
    with other.lock():
        assert other.ref() == ref
    assert sorted(read_json(entry.path / "manifest.json")["files"]) == ["rows.txt", "weights/a.bin"]


HOLD = """
import sys
from pathlib import Path
from pipeline_lib.store import Store
with Store(Path(sys.argv[1])).entry("s", {}, version=1).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_killed_process_leaves_no_lock(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        entry = Store(tmp_path).entry("s", {}, version=1)
        with pytest.raises(StoreError, match="another process"), entry.lock():
            pass
        process.kill()
    with entry.lock(timeout_s=10):
        assert not entry.is_complete()


def test_a_lock_that_cannot_say_whose_it_is_is_given_back(store):
    """As on a full disk: the stage is tried again in the same process."""
    entry = store.entry("s", {}, version=1)
    (entry.path / OWNER).mkdir(parents=True)
    with pytest.raises(IsADirectoryError), entry.lock():
        pass
    (entry.path / OWNER).rmdir()
    with entry.lock():
        assert not entry.is_complete()


def test_a_missing_upstream_is_named_and_looking_for_it_makes_no_folder(store):
    ref = Ref(uri="search/gone", sha256="0" * 64, num_rows=1, schema_version=1)
    assert not store.is_complete(ref)
    assert store.observations(ref) == {}
    with pytest.raises(StoreError, match="search/gone is missing or incomplete"):
        store.open(ref)
    assert not store.root.exists()


COMMIT = """
import sys
from pathlib import Path
from pipeline_lib.store import Store, write_json
entry = Store(Path(sys.argv[1])).entry("s", {"x": 1}, version=1)
sys.stdin.readline()  # until told, so that both commit at once
for _ in range(30):
    write_json(entry.path / "rows.json", list(range(100)))
    entry.commit(100, {"seconds": 1.0})
print(entry.ref().model_dump_json())
"""


def test_two_processes_that_commit_the_same_entry_agree(tmp_path):
    command = [sys.executable, "-c", COMMIT, str(tmp_path)]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    refs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert refs[0] == refs[1]
    path = Store(tmp_path).open(Ref.model_validate_json(refs[0]))
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "observations.json", "rows.json"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_canonical_json_ignores_the_order_of_keys_and_round_trips(value):
    backwards = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(backwards)
    assert json.loads(canonical_json(value)) == value


def test_json_that_would_not_read_back_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"kl": float("nan")})
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        write_json(tmp_path / "x.json", {1, 2})
    assert not list(tmp_path.iterdir())


def test_write_json_replaces_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"ä": 1})
    write_json(path, SearchConfig())
    assert SearchConfig.model_validate(read_json(path)) == SearchConfig()
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    old, path = pa.table({"a": [1]}), tmp_path / "rows.parquet"
    write_parquet(old, path)

    def half(_, where, **__):
        where.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", half)
    with pytest.raises(OSError, match="No space left"):
        write_parquet(pa.table({"a": [2]}), path)
    assert pq.read_table(path) == old
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_made_again_takes_the_place_of_what_was_there_once_it_is_whole(store):
    entry = store.entry("train", {"seed": 0}, version=1)
    first = fill(entry, "first")
    draft = entry.draft()
    (draft.path / "rows.txt").write_text("half of the sec")
    assert store.open(first), "it stays while the other one is made"
    fill(draft, "second")
    assert entry.replace_by(draft)
    assert (entry.path / "rows.txt").read_text() == "second"
    assert entry.is_whole()
    assert entry.ref() != first
    assert not (store.root / "again").exists()
    same = entry.draft()
    fill(same, "second")
    assert not entry.replace_by(same)
    assert [path.name for path in store.root.iterdir()] == ["train"]


def test_what_has_been_made_again_is_remembered_until_all_is(tmp_path):
    file = tmp_path / "refresh" / "key.json"
    refresh = Refresh(file, ["train"])
    assert [refresh.wants(uri) for uri in ("train/a", "train/b", "search/a")] == [True, True, False]
    refresh.has_made("train/a")
    killed_and_given_again = Refresh(file, ["train"])
    assert killed_and_given_again.id == refresh.id
    assert [killed_and_given_again.wants(uri) for uri in ("train/a", "train/b")] == [False, True]
    killed_and_given_again.end()
    assert Refresh(file, ["train"]).id != refresh.id
