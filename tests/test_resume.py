"""The model itself, killed in search and in training; `test_kill_sweep` does so anywhere, with scripted rollouts."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from forked_run import output_of, start_run
from run_fixtures import manifests

from deployments.command.options import build_config
from pipeline_lib.search.tree_files import read_trees_parquet, tree_to_dict

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]

SETTINGS = (
    "num_iterations=1",
    "policy.max_batch=24",  # few trees are live at once
    "problems.num_problems=24",
    "problems.num_validation=8",
    "search.num_simulations=8",
    "search.num_shards=1",
    "evaluation.num_problems=8",
    "train.checkpoint_every=1",
    "train.num_epochs=1",
    "train.tokens_per_update=256",
    "train.tokens_per_microbatch=256",
)
TIME_LIMIT_S = 240


@contextmanager
def coppice_run(home: Path, api: str) -> Iterator[ForkServerProcess]:
    """`coppice run` in a process of its own, which is gone when the block ends."""
    process = start_run(home, api, *SETTINGS)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def end_well(process: ForkServerProcess, home: Path) -> None:
    process.join(TIME_LIMIT_S)
    assert process.exitcode == 0, output_of(home)


def run_uninterrupted(home: Path) -> None:
    """The same in this process, which saves the start of another one."""
    from flows.self_training import self_training

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        self_training(build_config("tiny", [*SETTINGS]))


def wait_for(process: ForkServerProcess, happened: Callable[[], bool]) -> None:
    """Returns as soon as it has happened; fails when the process ends before."""
    deadline = time.monotonic() + TIME_LIMIT_S
    while not happened():
        assert process.exitcode is None, "ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def kill(process: ForkServerProcess) -> None:
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def whole_lines(home: Path) -> list[bytes]:
    """Finished problems of the search under way; a torn last line is left out."""
    return [
        line
        for path in home.glob("store/search-shard/*/.partial/trees.jsonl")
        for line in path.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    ]


def updates(home: Path) -> list[int]:
    """Updates after which there is a checkpoint, in order."""
    folders = home.glob("store/train-policy/*/.partial/checkpoint/update-*")
    return sorted(int(path.name.removeprefix("update-")) for path in folders)


def killed_in_search(home: Path, api: str) -> list[bytes]:
    with coppice_run(home, api) as process:
        wait_for(process, lambda: len(whole_lines(home)) >= 3)
        kill(process)
    assert not list(home.glob("store/search-shard/*/manifest.json"))
    return whole_lines(home)


def killed_in_training(home: Path, api: str, kept: list[bytes]) -> int:
    """Kills the resumed run once it has a few updates; the finished problems must stay as they were."""
    seen: list[bytes] = []

    def trained() -> bool:
        nonlocal seen
        seen = whole_lines(home) or seen
        return bool(updates(home)[-1:] >= [3])

    with coppice_run(home, api) as process:
        wait_for(process, trained)
        kill(process)
    assert seen[: len(kept)] == kept
    names = [json.loads(line)["problem_id"] for line in seen]
    assert len(names) == len(set(names))
    assert not list(home.glob("store/train-policy/*/manifest.json"))
    return updates(home)[-1]


def check_kept(home: Path, kept: list[bytes]) -> None:
    """The finished trees of a killed search are in the search's result as they were."""
    [path] = home.glob("store/search-shard/*/trees.parquet")
    trees = {tree.problem_id: tree_to_dict(tree) for tree in read_trees_parquet(path)}
    assert all(trees[tree["problem_id"]] == tree for tree in map(json.loads, kept))


def test_killed_in_search_and_in_training_it_ends_as_if_uninterrupted(
    prefect_api: str, new_home: Callable[[], Path]
) -> None:
    killed, whole = new_home(), new_home()
    kept = killed_in_search(killed, prefect_api)
    last_update = killed_in_training(killed, prefect_api, kept)
    before, seen = set(updates(killed)), set[int]()

    def trained() -> bool:
        seen.update(updates(killed))
        return bool(list(killed.glob("store/train-policy/*/manifest.json")))

    with coppice_run(killed, prefect_api) as process:
        wait_for(process, trained)
        end_well(process, killed)
    assert min(seen - before) > last_update
    check_kept(killed, kept)
    run_uninterrupted(whole)
    assert manifests(killed) == manifests(whole)
