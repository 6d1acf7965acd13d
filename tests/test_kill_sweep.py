"""A sweep of SIGKILLs at seeded random moments: whatever is running, the same command goes on and ends the same.

One idea: the scripted policy makes a run reproducible, so that everything a killed and resumed run leaves can be
compared with what an uninterrupted one leaves, byte by byte.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from forked_run import output_of, start_run, warm_up
from run_fixtures import children, client, manifests, read_whole

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]

NUM_KILLS = 20
KILLS_PER_RUN = 10
LATEST = 0.4  # of the processor time that a whole run takes, from each start: a busy machine moves no kill
TICK_S = 0.05
SETTINGS = (
    "policy.backend=scripted",
    "policy.max_batch=8",
    "num_iterations=2",
    "problems.num_problems=24",
    "problems.num_validation=8",
    "search.num_shards=2",
    "evaluation.datasets=tiny-word",
    "evaluation.num_problems=8",
    "evaluation.num_samples=0",
    "train.checkpoint_every=1",
    "train.num_epochs=1",
    "train.tokens_per_update=1024",
    "train.tokens_per_microbatch=1024",
)
TIME_LIMIT_S = 240.0


@dataclass
class Home:
    """A home in which the same run is started again and again, and what must stay as it was."""

    path: Path
    api: str
    finished: dict[str, tuple[str, int]] = field(default_factory=dict)
    trees: dict[str, list[bytes]] = field(default_factory=dict)

    def start(self) -> ForkServerProcess:
        return start_run(self.path, self.api, *SETTINGS)

    def run_to_the_end(self) -> float:
        """Returns how many seconds of processor time it took."""
        process = self.start()
        spent = wait_while_it_spends(process, float("inf"))
        assert process.exitcode == 0, output_of(self.path)
        return spent

    def kill_after(self, seconds: float) -> bool:
        """Starts the run and kills it after so much processor time; False when it had ended by itself."""
        process = self.start()
        wait_while_it_spends(process, seconds)
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL

    def check_nothing_is_lost_or_torn(self) -> None:
        """What was finished is there unchanged and was not made again; no file is half written."""
        done = {
            uri: (digest, (self.path / "store" / uri / "manifest.json").stat().st_mtime_ns)
            for uri, digest in manifests(self.path).items()
        }
        assert {uri: done.get(uri) for uri in self.finished} == self.finished
        self.finished = done
        for file in self.path.glob("store/*/*/.partial/trees.jsonl"):
            lines = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            kept = self.trees.get(str(file), [])
            assert lines[: len(kept)] == kept
            self.trees[str(file)] = lines
            names = [json.loads(line)["problem_id"] for line in lines]
            assert len(set(names)) == len(names)
        for file in (
            path for path in self.path.glob("store/*/*/*") if path.is_file() and not path.name.startswith(".")
        ):
            read_whole(file)
        for uri in done:  # what lies deeper, too
            folder = self.path / "store" / uri
            for name in json.loads((folder / "manifest.json").read_bytes())["files"]:
                read_whole(folder / name)

    def left(self) -> dict[str, Any]:
        """What the run came to: its entries, its champion, and its runs and points in MLflow."""
        summary = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        mlflow = client(self.path)
        parents = [run for run in mlflow.search_runs(["1"]) if "mlflow.parentRunId" not in run.data.tags]
        assert len(parents) == 1
        runs = [*parents, *children(self.path, parents[0].info.run_id)]
        points = Counter(
            (run.data.tags["coppice.run_key"].rpartition("/")[2], name, point.step)
            for run in runs
            for name in run.data.metrics
            for point in mlflow.get_metric_history(run.info.run_id, name)
        )
        assert max(points.values()) == 1, "a metric has two points at one step"
        names = {(name, step) for _, name, step in points if not name.startswith(("time/", "search/", "train/"))}
        return {
            "entries": manifests(self.path),
            "champion": summary["champion"],
            "stopped_because": summary["stopped_because"],
            "statuses": [run.info.status for run in runs],
            "points": names,
            "versions": len(mlflow.search_model_versions("name = 'coppice-tiny'")),
        }


def wait_while_it_spends(process: ForkServerProcess, seconds: float) -> float:
    """Returns when the process has ended, or has used so much processor time; how much it was last seen with."""
    seen, spent, deadline = psutil.Process(process.pid), 0.0, time.monotonic() + TIME_LIMIT_S
    while process.is_alive() and spent < seconds and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            times = seen.cpu_times()
            spent = times.user + times.system
        process.join(TICK_S)
    return spent


@pytest.mark.timeout(900)
def test_killed_at_any_moment_a_run_goes_on_and_ends_as_if_it_had_never_been(
    prefect_api: str, new_home: Callable[[], Path]
) -> None:
    warm_up()
    whole = Home(new_home(), prefect_api)
    seconds = whole.run_to_the_end()
    expected = whole.left()
    assert set(expected["statuses"]) == {"FINISHED"}
    draw, num_kills = random.Random(0), 0
    while num_kills < NUM_KILLS:
        home = Home(new_home(), prefect_api)
        for _ in range(KILLS_PER_RUN):
            num_kills += home.kill_after(draw.uniform(0, LATEST * seconds))
            home.check_nothing_is_lost_or_torn()
        home.run_to_the_end()
        home.check_nothing_is_lost_or_torn()
        assert home.left() == expected
    assert num_kills >= NUM_KILLS
