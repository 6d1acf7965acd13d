"""Searches one shard of an iteration's problems."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pipeline_lib.config import PipelineConfig
from pipeline_lib.problems.formats import format_of
from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.search import TreeWriter, read_trees, read_trees_parquet, search_trees, write_trees_parquet
from pipeline_lib.seeding import derive_seed
from pipeline_lib.store import Entry
from pipeline_lib.types import PolicyRef, Ref, SearchTree
from tasks.problems import PROBLEMS
from tasks.runtime.engines import engine_spec, open_policy
from tasks.runtime.graders import grading_spec, open_grader
from tasks.runtime.progress import Progress
from tasks.runtime.runner import run_each
from tasks.runtime.stage import open_store, stage

TREES = "trees.parquet"
TOTALS = ("num_rollouts", "tokens_generated", "tokens_kept", "num_timeouts")


def _spec(
    *, config: PipelineConfig, problems: Ref, policy: PolicyRef, iteration: int, shard: int, earlier: tuple[Ref, ...]
) -> dict[str, Any]:
    search = config.search.model_dump(exclude={"num_shards"})
    engine = engine_spec(config)
    if earlier:
        search["num_simulations"] *= 2
    return {
        "search": search,
        "engine": engine,
        "policy_id": policy.policy_id,
        **grading_spec(config),
        "seed": config.seed,
        "iteration": iteration,
        "shard": [shard, config.search.num_shards],
    }


@stage(_spec, run_name="search {iteration} shard {shard}")
def search_shard(
    entry: Entry,
    *,
    config: PipelineConfig,
    problems: Ref,
    policy: PolicyRef,
    iteration: int,
    shard: int,
    earlier: tuple[Ref, ...],
) -> None:
    """Searches every ``num_shards``-th problem; finished trees are appended as they come and outlive a kill.

    Args:
        entry: filled with ``trees.parquet``.
        config: of the run.
        problems: the iteration's problems.
        policy: what is sampled.
        iteration: part of every seed.
        shard: which of ``search.num_shards``.
        earlier: trees of this shard to go on with, with twice the simulations: the audit's remedy.
    """
    started = time.perf_counter()
    mine = read_problems(open_store().open(problems) / PROBLEMS)[shard :: config.search.num_shards]
    resume, done = _resumable(earlier)
    partial = entry.path / ".partial"
    partial.mkdir(exist_ok=True)
    found = {tree.problem_id: tree for tree in read_trees(partial / "trees.jsonl")}
    to_do = [p for p in mine if p.problem_id not in found and p.problem_id not in done]
    search = config.search
    if earlier:
        search = search.model_copy(update={"num_simulations": 2 * search.num_simulations})
    progress = Progress(f"search {iteration}.{shard}" + (" again" if earlier else ""), len(to_do))
    observations: dict[str, float] = {}
    with TreeWriter(partial / "trees.jsonl") as writer, open_grader(config, config.problems.dataset) as grader:

        def on_tree(tree: SearchTree) -> None:
            writer.append(tree)
            found[tree.problem_id] = tree
            progress.advance()

        if to_do:
            num_resumed, engine = len(found), open_policy(config, policy, to_do)
            stats = search_trees(
                to_do,
                engine,
                grader,
                search,
                seed=derive_seed(config.seed, "search", iteration),
                step_delimiter=format_of(to_do[0].dataset).step_delimiter,
                on_tree=on_tree,
                resume={p.problem_id: resume[p.problem_id] for p in to_do if p.problem_id in resume},
            )
            observations = stats.model_dump()
            observations |= {"batch_invariant": float(engine.batch_invariant), "num_resumed": float(num_resumed)}
    trees = [done.get(problem.problem_id) or found[problem.problem_id] for problem in mine]
    write_trees_parquet(trees, entry.path / TREES)
    observations |= _totals(trees, load_trees(earlier))
    entry.commit(len(trees), {**observations, "stage_seconds": time.perf_counter() - started})


def _totals(trees: Sequence[SearchTree], earlier: Sequence[SearchTree]) -> dict[str, float]:
    """What the whole search added, over all processes that worked on it; the other observations are the last one's."""
    return {
        f"total/{name}": sum(getattr(t, name) for t in trees) - sum(getattr(t, name) for t in earlier)
        for name in TOTALS
    }


def _resumable(earlier: tuple[Ref, ...]) -> tuple[dict[str, SearchTree], dict[str, SearchTree]]:
    """Earlier trees by problem id: the uninformative ones, to be searched on, and the others, kept as they are."""
    trees = load_trees(earlier)
    return (
        {tree.problem_id: tree for tree in trees if not tree.is_informative},
        {tree.problem_id: tree for tree in trees if tree.is_informative},
    )


def load_trees(refs: tuple[Ref, ...]) -> list[SearchTree]:
    """All trees of an iteration's shards, by problem id."""
    trees = [tree for ref in refs for tree in read_trees_parquet(open_store().open(ref) / TREES)]
    return sorted(trees, key=lambda tree: tree.problem_id)


def search_problems(
    *, config: PipelineConfig, problems: Ref, policy: PolicyRef, iteration: int, earlier: tuple[Ref, ...] = ()
) -> tuple[Ref, ...]:
    """All shards of one iteration, one task each; ``runner`` says where they run."""
    shards = range(min(config.search.num_shards, problems.num_rows))
    same = {"config": config, "problems": problems, "policy": policy, "iteration": iteration}
    calls = [{**same, "shard": shard, "earlier": earlier[shard : shard + 1]} for shard in shards]
    return run_each(config, search_shard, calls, name=f"search {iteration}" + (" again" if earlier else ""))
