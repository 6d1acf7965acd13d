"""Entries that a disk has damaged: one byte changed, a file cut short, a file lost. They are found and made again."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from run_fixtures import SCRIPTED, manifests, small_config

from pipeline_lib.store import MANIFEST, OBSERVATIONS, Entry, Store, StoreError, write_json
from pipeline_lib.types import IterationRecord, Ref, RunResult

Fault = Callable[[Path], None]


def write(path: Path, content: bytes) -> None:
    """Writes; the time stamp moves on even where the clock is coarse."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def flip(path: Path, bit: int | None = None) -> None:
    """One bit, in the middle if no other is named."""
    content = bytearray(path.read_bytes())
    bit = 4 * len(content) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    write(path, bytes(content))


def cut(path: Path) -> None:
    write(path, path.read_bytes()[: path.stat().st_size // 2])


def lose(path: Path) -> None:
    path.unlink()


FAULTS: tuple[Fault, ...] = (flip, cut, lose)
FILES = ("rows.json", "weights/a.bin", MANIFEST, OBSERVATIONS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(entry: Entry) -> Ref:
    write_json(entry.path / "rows.json", list(range(100)))
    (entry.path / "weights").mkdir(exist_ok=True)
    (entry.path / "weights" / "a.bin").write_bytes(b"\x00\x01")
    return entry.commit(100, {"seconds": 0.1 + 0.2, "record": {"tracking_run": "ä", "1": None}})


def new_entry(store: Store) -> Entry:
    return store.entry("stage", {"x": 1}, version=1)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_damaged_entry_is_moved_aside_and_the_same_bytes_come_out(
    store: Store, file: str, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    entry = new_entry(store)
    ref = make(entry)
    assert entry.is_whole()
    fault(entry.path / file)
    was_lost = fault is lose and file in (MANIFEST, OBSERVATIONS)  # as if it had never been written
    assert (entry.damage() is None) is was_lost
    with caplog.at_level(logging.WARNING, logger="coppice.progress"), entry.lock():
        entry.set_aside_damage()
    assert entry.damage() is None
    assert entry.is_whole() is (file == OBSERVATIONS), "measurements are lost alone"
    assert len(caplog.messages) == (0 if was_lost else 1)
    aside = store.root / "damaged" / f"{entry.uri}.1"
    assert aside.is_dir() is not was_lost
    if not was_lost:
        assert f"store: {entry.uri} is damaged: {file} " in caplog.text
        assert f"it was moved to {aside}" in caplog.text
        assert (aside / file).is_file() is (fault is not lose)
    assert make(entry) == ref
    assert entry.is_whole()


def test_no_single_bit_of_an_entry_can_change_unseen(store: Store) -> None:
    entry = new_entry(store)
    ref = make(entry)
    for name in FILES:
        path = entry.path / name
        before = path.read_bytes()
        for bit in range(8 * len(before)):
            flip(path, bit)
            if entry.damage() is None:  # white space, or another spelling of the same value
                assert entry.observations() == {"seconds": 0.1 + 0.2, "record": {"tracking_run": "ä", "1": None}}
                assert name == OBSERVATIONS
            flip(path, bit)
        assert path.read_bytes() == before
    assert entry.ref() == ref


def test_several_damages_of_one_entry_lie_side_by_side_and_work_under_way_stays(store: Store) -> None:
    entry = new_entry(store)
    for number in (1, 2):
        make(entry)
        (entry.path / ".partial").mkdir()
        (entry.path / ".partial" / "trees.jsonl").write_text("hours of work")
        flip(entry.path / "rows.json")
        entry.set_aside_damage()
        assert (store.root / "damaged" / f"{entry.uri}.{number}" / "rows.json").is_file()
        assert (entry.path / ".partial" / "trees.jsonl").is_file()


def test_an_entry_of_version_0_1_0_has_no_seal_and_is_read(store: Store) -> None:
    entry = new_entry(store)
    ref = make(entry)
    write_json(entry.path / OBSERVATIONS, {"stage_seconds": 1.5, "record": {"index": 0}})
    assert entry.is_whole()
    assert store.observations(ref) == {"stage_seconds": 1.5, "record": {"index": 0}}
    flip(entry.path / "rows.json")
    assert not entry.is_whole()


def test_damaged_measurements_are_not_read(store: Store) -> None:
    entry = new_entry(store)
    ref = make(entry)
    text = (entry.path / OBSERVATIONS).read_text(encoding="utf-8")
    (entry.path / OBSERVATIONS).write_text(text.replace("0.30000000000000004", "0.90000000000000004"))
    with pytest.raises(StoreError, match=r"observations\.json was changed; run its stage again$"):
        store.observations(ref)
    assert store.open(ref) == entry.path, "the result is whole"


def test_a_lookup_takes_no_damaged_entry_and_leaves_no_folder(store: Store) -> None:
    assert store.find("stage", {"x": 1}, version=1) is None
    assert not store.root.exists()
    ref = make(new_entry(store))
    found = store.find("stage", {"x": 1}, version=1)
    assert found is not None
    assert found.ref() == ref
    flip(store.root / ref.uri / "rows.json")
    assert store.find("stage", {"x": 1}, version=1) is None


def entries_of(home: Path) -> dict[str, Path]:
    """One entry of each stage."""
    return {path.name: min(p for p in path.iterdir()) for path in (home / "store").iterdir() if path.name != "damaged"}


def files_of(entry: Path) -> list[Path]:
    return sorted(path for path in entry.rglob("*") if path.is_file() and path.name != ".lock")


def content(result: RunResult) -> list[IterationRecord]:
    from tasks.record import MEASURED

    return [record.model_copy(update=dict.fromkeys(MEASURED)) for record in result.records]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's and Prefect's own
@pytest.mark.parametrize(("fault", "which"), [(flip, 0), (flip, 1), (flip, 2), (flip, 3), (cut, 0), (lose, 0)])
def test_a_run_goes_on_over_damage_in_every_stage(
    prefect_api: str, scripted_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, which: int
) -> None:
    """Of an entry of every stage one file is damaged, another one each time."""
    from flows.self_training import self_training

    home = tmp_path / "home"
    shutil.copytree(scripted_home, home)
    monkeypatch.setenv("COPPICE_HOME", str(home))
    config = small_config(*SCRIPTED)
    before, undamaged = manifests(home), self_training(config)
    entries = entries_of(home)
    hit = {name: files_of(entry)[which % len(files_of(entry))] for name, entry in entries.items()}
    for path in hit.values():
        fault(path)
    result = self_training(config)
    assert manifests(home) == before
    assert content(result) == content(undamaged)
    assert result.decision == undamaged.decision
    for name, entry in entries.items():
        assert name == "search-shard" or name == "announce" or Entry(entry, f"{name}/{entry.name}").is_whole(), name
