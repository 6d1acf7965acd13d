"""Two machines, each with a folder of its own, and one object store between them: in memory, and S3's protocol."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
from run_fixtures import SCRIPTED, client, small_config

from pipeline_lib.config import Settings
from pipeline_lib.store import Entry, StoreError
from pipeline_lib.store.shared import SharedEntry, SharedStore
from pipeline_lib.types import Ref

BUCKET = "coppice"
Machine = Callable[[], SharedStore]


@pytest.fixture(scope="session")
def s3() -> Iterator[None]:
    """A server of S3's protocol on loopback, where every client of this session finds it."""
    server_module = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line per request
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield
    server.stop()


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def uri(request: pytest.FixtureRequest) -> str:
    """An empty folder in an object store."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    return f"{request.param}://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def machine(uri: str, tmp_path: Path) -> Machine:
    """Makes stores that share the object store and nothing else."""
    return lambda: SharedStore(tmp_path / uuid.uuid4().hex, uri, sync_s=0.02)


def fill(entry: Entry, text: str = "rows") -> Ref:
    (entry.path / "rows.txt").write_text(text)
    (entry.path / "weights").mkdir(exist_ok=True)
    (entry.path / "weights" / "a.bin").write_bytes(b"\x00\x01")
    return entry.commit(3, {"stage_seconds": 1.5})


def entry_of(store: SharedStore) -> SharedEntry:
    entry = store.entry("search", {"seed": 0}, version=1)
    assert isinstance(entry, SharedEntry)
    return entry


def remote(uri: str, pattern: str) -> list[str]:
    return list(fsspec.core.url_to_fs(uri, use_listings_cache=False)[0].glob(f"{uri}/search/*/{pattern}"))


def test_what_one_machine_made_another_one_has(machine: Machine) -> None:
    first, second = machine(), machine()
    ref = fill(entry_of(first))
    assert entry_of(second).is_complete()
    assert second.is_complete(ref)
    assert not list(entry_of(second).path.iterdir()), "asking fetches nothing"
    assert entry_of(second).ref() == ref
    folder = second.open(ref)
    assert (folder / "rows.txt").read_text() == "rows"
    assert (folder / "weights" / "a.bin").read_bytes() == b"\x00\x01"
    assert second.observations(ref) == {"stage_seconds": 1.5}
    assert second.folder(ref.uri) == folder == second.root / ref.uri


def test_what_nobody_made_is_missing(machine: Machine) -> None:
    store = machine()
    assert not entry_of(store).is_complete()
    ref = Ref(uri="search/none", sha256="0" * 64, num_rows=1, schema_version=1)
    with pytest.raises(StoreError, match="missing or incomplete"):
        store.open(ref)


def test_an_entry_is_not_there_before_its_manifest_and_a_killed_copy_is_finished_later(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine(), machine()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline_lib.store.bucket.Bucket.put_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(entry_of(first))
    assert not entry_of(second).is_complete()
    assert entry_of(first).is_complete()
    assert entry_of(second).ref() == entry_of(first).ref()


def test_of_two_that_made_the_same_entry_the_first_one_stays(machine: Machine) -> None:
    first, second, third = machine(), machine(), machine()
    ref = fill(entry_of(first), "mine")
    assert fill(entry_of(second), "other") == ref
    for store in (first, second, third):
        assert (store.open(ref) / "rows.txt").read_text() == "mine"


def test_an_entry_made_again_elsewhere_is_the_same_one_with_its_latest_observations(machine: Machine) -> None:
    first, second = machine(), machine()
    ref = fill(entry_of(first))
    entry = entry_of(second)
    entry.fetch()
    entry.commit(3, {"stage_seconds": 9.0})
    assert machine().observations(ref) == {"stage_seconds": 9.0}


def test_an_entry_that_lost_a_file_is_made_again(machine: Machine, uri: str) -> None:
    ref = fill(entry_of(machine()))
    [lost] = remote(uri, "*/rows.txt")
    fsspec.core.url_to_fs(uri)[0].rm_file(lost)
    second = machine()
    assert not second.is_complete(ref)
    assert fill(entry_of(second), "made again").sha256 != ref.sha256
    assert (machine().folder(ref.uri) / "rows.txt").read_text() == "made again"


def test_a_changed_file_is_noticed(machine: Machine, uri: str) -> None:
    ref = fill(entry_of(machine()))
    [file] = remote(uri, "*/rows.txt")
    fsspec.core.url_to_fs(uri)[0].pipe_file(file, b"ROWS")
    with pytest.raises(StoreError, match=r"rows\.txt was changed"):
        machine().open(ref)


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def overwrite(path: Path, content: bytes) -> None:
    """Writes; the time stamp moves on even where the clock is coarse."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def in_bucket(uri: str, pattern: str) -> tuple[Any, str]:
    [path] = remote(uri, pattern)
    return fsspec.core.url_to_fs(uri, use_listings_cache=False)[0], path


def aside(uri: str) -> set[str]:
    """Names of what lies in the bucket's folder of damaged entries."""
    found = fsspec.core.url_to_fs(uri, use_listings_cache=False)[0].find(f"{uri}/damaged")
    return {path.rpartition("/")[2] for path in found}


FILES = ["*/rows.txt", "*/weights/a.bin", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("fault", ["flip", "cut", "lose"])
def test_what_the_bucket_has_damaged_is_moved_aside_there_and_made_again(
    machine: Machine, uri: str, file: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    ref = fill(entry_of(machine()))
    bucket, path = in_bucket(uri, file)
    content = bucket.cat_file(path)
    bucket.rm_file(path) if fault == "lose" else None
    bucket.pipe_file(path, flip(content) if fault == "flip" else content[:-1]) if fault != "lose" else None
    entry = entry_of(machine())
    assert not entry.is_whole()
    with caplog.at_level("WARNING", logger="coppice.progress"), entry.lock():
        entry.set_aside_damage()
        assert not entry.is_complete()
        assert fill(entry) == ref
    assert entry.is_whole()
    if (file, fault) != ("manifest.json", "lose"):  # that is an entry that nobody made
        assert f"{ref.uri} is damaged" in caplog.text
        assert f"moved to {uri}/damaged/{ref.uri}." in caplog.text
        assert aside(uri) == {"rows.txt", "a.bin", "manifest.json", "observations.json"} - (
            {file.rpartition("/")[2]} if fault == "lose" else set()
        )
    assert (machine().open(ref) / "rows.txt").read_text() == "rows"


def test_measurements_that_the_bucket_has_damaged_are_lost_alone(machine: Machine, uri: str) -> None:
    ref = fill(entry_of(machine()))
    bucket, path = in_bucket(uri, "*/observations.json")
    bucket.pipe_file(path, bucket.cat_file(path).replace(b"1.5", b"2.5"))
    entry = entry_of(machine())
    with entry.lock():
        entry.set_aside_damage()
    assert entry.is_whole()
    assert machine().observations(ref) == {}
    assert machine().is_complete(ref)


@pytest.mark.parametrize("file", ["rows.txt", "weights/a.bin", "manifest.json", "observations.json"])
def test_a_damaged_copy_is_fetched_again(machine: Machine, uri: str, file: str) -> None:
    fill(entry_of(machine()))
    store = machine()
    ref = entry_of(store).ref()
    path = store.open(ref) / file
    content = path.read_bytes()
    overwrite(path, flip(content))
    assert entry_of(store).is_whole()
    assert path.read_bytes() == content
    overwrite(path, flip(content))
    assert (store.open(ref) / file).read_bytes() == content
    assert aside(uri) == set()


def test_what_the_bucket_lost_is_put_back_by_a_machine_that_has_it(machine: Machine, uri: str) -> None:
    entry = entry_of(machine())
    ref = fill(entry)
    bucket, path = in_bucket(uri, "*/rows.txt")
    bucket.rm_file(path)
    assert entry.is_whole()
    assert (machine().open(ref) / "rows.txt").read_text() == "rows"


def test_work_under_way_outlives_its_machine(machine: Machine, uri: str) -> None:
    first, second = entry_of(machine()), entry_of(machine())

    def work(entry: Entry, line: str) -> str:
        partial = entry.path / ".partial"
        (partial / "checkpoint").mkdir(parents=True, exist_ok=True)
        with (partial / "trees.jsonl").open("a") as file:
            file.write(line)
        return (partial / "trees.jsonl").read_text()

    with suppress(RuntimeError), first.lock():
        work(first, "one\n")
        wait_for(lambda: bool(remote(uri, ".partial/trees.jsonl")))  # copied while the work goes on
        work(first, "two\n")
        raise RuntimeError("the machine is told to stop")
    with suppress(RuntimeError), second.lock():
        assert work(second, "three\n") == "one\ntwo\nthree\n"
        raise RuntimeError("this one too")
    with first.lock():
        assert work(first, "four\n") == "one\ntwo\nthree\nfour\n"
        fill(first)
    assert remote(uri, ".partial/*") == []
    assert second.is_complete()


def test_a_copy_that_fails_does_not_stop_the_work(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError("the network is down")

    monkeypatch.setattr("pipeline_lib.store.bucket.Bucket.put", fail)
    entry = entry_of(machine())
    with caplog.at_level("WARNING", logger="coppice.progress"), entry.lock():
        (entry.path / ".partial").mkdir()
        (entry.path / ".partial" / "trees.jsonl").write_text("one\n")
        wait_for(lambda: "the network is down" in caplog.text)
        fill(entry)
    assert entry.is_complete()


@pytest.mark.parametrize("method", ["cat_file", "find", "put_file", "get_file", "pipe_file", "rm_file"])
@pytest.mark.slow
def test_an_object_store_that_does_not_answer_for_a_moment_ends_nothing(
    s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """Each call of a kind fails once, after it has done its work: as where the answer is lost."""
    from botocore.exceptions import EndpointConnectionError

    uri = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    first, second = (SharedStore(tmp_path / name, uri, sync_s=0.02, patience_s=60) for name in ("first", "second"))
    done, failed = getattr(first._bucket._fs, method), set()

    def answer_lost(*arguments: Any, **named: Any) -> Any:
        result = done(*arguments, **named)
        if arguments not in failed:
            failed.add(arguments)
            raise EndpointConnectionError(endpoint_url="http://bucket")
        return result

    monkeypatch.setattr(first._bucket._fs, method, answer_lost)  # fsspec has one object for all of an address
    monkeypatch.setattr("pipeline_lib.store.patience.time.sleep", lambda _: None)
    entry = entry_of(first)
    with entry.lock():
        (entry.path / ".partial").mkdir()
        (entry.path / ".partial" / "trees.jsonl").write_text("one\n")
        wait_for(lambda: bool(first._bucket.sizes(f"{entry.uri}/.partial")))  # there is something to remove later
        ref = fill(entry)
    assert (second.open(ref) / "rows.txt").read_text() == "rows"
    assert second.observations(ref) == {"stage_seconds": 1.5}
    assert failed
    assert f"store: {uri} does not answer" in caplog.text
    assert "asked again for up to 60 s" in caplog.text


@pytest.mark.slow
def test_what_an_object_store_refuses_is_not_asked_twice(s3: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline_lib.store.bucket import Bucket

    monkeypatch.setattr("pipeline_lib.store.patience.time.sleep", None)
    with pytest.raises(StoreError, match=r"store: s3://none/x: "):
        Bucket("s3://none/x", patience_s=60).put("a", b"")


def test_what_is_wrong_with_the_address_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"store: nothing://a: .*COPPICE_STORE"):
        SharedStore(tmp_path, "nothing://a")


@pytest.mark.slow
def test_a_missing_bucket_is_an_error_of_ours(s3: None, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"store: s3://none/x: .*COPPICE_STORE"):
        fill(SharedStore(tmp_path, "s3://none/x").entry("s", {}, version=1))


def test_settings_tell_a_folder_from_an_object_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path))
    found = {}
    for store in ("", str(tmp_path / "shared"), f"file://{tmp_path}/shared", "s3://bucket/folder"):
        monkeypatch.setenv("COPPICE_STORE", store) if store else monkeypatch.delenv("COPPICE_STORE", raising=False)
        settings = Settings()
        found[store] = (settings.store_root, settings.object_store, settings.store_uri)
    folders = [tmp_path / "store", tmp_path / "shared", tmp_path / "shared"]
    assert list(found.values()) == [
        *((folder, None, str(folder)) for folder in folders),
        (tmp_path / "store", "s3://bucket/folder", "s3://bucket/folder"),
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's and Prefect's own
def test_a_run_goes_on_on_another_machine(
    s3: None, prefect_api: str, new_home: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.self_training import self_training

    def run_in(home: Path) -> Any:
        monkeypatch.setenv("COPPICE_HOME", str(home))
        return self_training(small_config(*SCRIPTED))

    monkeypatch.setenv("COPPICE_STORE", f"s3://{BUCKET}/{uuid.uuid4().hex}")
    first, second = new_home(), new_home()
    monkeypatch.setenv("COPPICE_TRACKING_URI", f"sqlite:///{first / 'mlflow.db'}")  # shared, as the store is
    monkeypatch.chdir(tmp_path)  # where MLflow puts the artifacts of a database that is named to it
    result = run_in(first)
    commits: list[str] = []
    monkeypatch.setattr(Entry, "commit", lambda self, *_: commits.append(self.uri))
    again = run_in(second)
    assert commits == []
    assert [record.refs for record in again.records] == [record.refs for record in result.records]
    assert again.decision == result.decision
    inputs = client(first).get_run(again.records[-1].tracking_run).inputs.dataset_inputs
    assert json.loads(inputs[0].dataset.source)["uri"].startswith("s3://")


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
