"""Two Ray workers against one, on the search of the tiny preset.

One idea: the cluster, its shards and their problems are the same on both sides; a shard that reserves both cores
leaves the second worker nothing to do. Ray may end a worker that waits: a few problems before each turn see to it that
both are there and have loaded the policy.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.flow import move_home
from benchmarks.measuring import Figure, in_turns, speedup

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.types import Ref

NUM_WORKERS = 2
STAGES = ("search-shard", "gather-trees")


def cluster_figures(config: PipelineConfig, home: Path, *, num_problems: int = 400, rounds: int = 2) -> list[Figure]:
    """``flow.ray_speedup``: tokens per second of two shards at once over those of one after the other.

    Empty on a machine with fewer than two cores or without Ray.

    Args:
        config: of the run.
        home: an empty folder, or one in which nothing was searched by Ray.
        num_problems: in both shards together.
        rounds: turns per side.
    """
    move_home(home)
    with _servers() as is_there:
        if not is_there:
            return []
        works = {
            "warm": lambda turn: _search(config, 2 * NUM_WORKERS, 1.0),  # workers are there and have loaded the policy
            "two": lambda turn: _search(config, num_problems, 1.0),
            "one": lambda turn: _search(config, num_problems, float(NUM_WORKERS)),
        }
        costs = in_turns(works, rounds=rounds)
    figure = speedup(
        "flow.ray_speedup", costs["two"], costs["one"], clock="wall", target=1.6, labels=("two_workers", "one_worker")
    )
    return [figure]


@contextmanager
def _servers() -> Iterator[bool]:
    """A Prefect server and a cluster of two cores; False where they cannot be had."""
    try:
        import prefect_ray  # noqa: F401
    except ImportError:
        yield False
        return
    if (os.cpu_count() or 1) < NUM_WORKERS:
        yield False
        return
    from prefect.testing.utilities import prefect_test_harness

    from tasks.runtime.runner import ray_cluster

    os.environ["RAY_TMPDIR"] = folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie below it
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # without one Ray writes one to the user's home
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # tasks travel by name, also this file's
    with prefect_test_harness(server_startup_timeout=120), ray_cluster(None, num_cpus=NUM_WORKERS):
        yield True
    shutil.rmtree(folder, ignore_errors=True)


def _search(config: PipelineConfig, num_problems: int, cpus_per_shard: float) -> float:
    """Searches from nothing and returns the tokens that were generated."""
    from prefect import flow

    from tasks.problems import draw_problems
    from tasks.runtime.policies import base_policy
    from tasks.search import load_trees, search_problems

    @flow(name="search-only")
    def search_only(config: PipelineConfig) -> tuple[Ref, ...]:
        problems = draw_problems(config=config, iteration=1)
        return search_problems(config=config, problems=problems, policy=base_policy(config), iteration=1)

    for stage in STAGES:
        shutil.rmtree(Settings().home / "store" / stage, ignore_errors=True)
    config = config.model_copy(
        update={
            "runner": "ray",
            "ray": config.ray.model_copy(update={"cpus_per_shard": cpus_per_shard}),
            "search": config.search.model_copy(update={"num_shards": NUM_WORKERS}),
            "problems": config.problems.model_copy(update={"num_problems": num_problems}),
        }
    )
    return float(sum(tree.tokens_generated for tree in load_trees(search_only(config))))
