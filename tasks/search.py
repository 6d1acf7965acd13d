"""Searches an iteration's problems, shard by shard."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from pipeline_lib.config import PipelineConfig, SearchConfig
from pipeline_lib.problems.formats import format_of
from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.search import TreeWriter, read_trees, read_trees_parquet, search_trees, write_trees_parquet
from pipeline_lib.seeding import derive_seed
from pipeline_lib.store import PARTIAL, Entry
from pipeline_lib.types import PolicyRef, Ref, SearchTree
from tasks.problems import PROBLEMS
from tasks.runtime.engines import engine_spec, open_policy
from tasks.runtime.graders import grading_spec, open_grader
from tasks.runtime.progress import Progress
from tasks.runtime.runner import run_each
from tasks.runtime.stage import Done, open_store, stage

TREES = "trees.parquet"
TOTALS = ("num_rollouts", "tokens_generated", "tokens_kept", "num_timeouts")


def _spec(
    *, config: PipelineConfig, problems: Ref, policy: PolicyRef, iteration: int, shard: int, earlier: tuple[Ref, ...]
) -> dict[str, Any]:
    return {
        "search": _search_config(config, earlier).model_dump(exclude={"num_shards"}),
        "engine": engine_spec(config),
        "policy_id": policy.policy_id,
        **grading_spec(config, config.problems.dataset),
        "seed": config.seed,
        "iteration": iteration,
        "shard": [shard, config.search.num_shards],
    }


def _search_config(config: PipelineConfig, earlier: tuple[Ref, ...]) -> SearchConfig:
    """What a shard is searched with: twice as much of a tree where it goes on from earlier ones, the audit's remedy."""
    if not earlier:
        return config.search
    budget = config.search.max_tokens_per_problem
    doubled = {"num_simulations": 2 * config.search.num_simulations}
    return config.search.model_copy(
        update=doubled if budget is None else {**doubled, "max_tokens_per_problem": 2 * budget}
    )


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
) -> Done:
    """Searches every ``num_shards``-th problem; finished trees are appended as they come and outlive a kill.

    Args:
        entry: filled with ``trees.parquet``.
        config: policy, search, grader and seed.
        problems: the iteration's problems.
        policy: what is sampled.
        iteration: part of every seed.
        shard: which of ``search.num_shards``.
        earlier: trees of this shard to go on with: informative ones are kept, the others searched further.
    """
    mine = read_problems(open_store().open(problems) / PROBLEMS)[shard :: config.search.num_shards]
    before = _by_problem(load_trees(earlier))
    finished = entry.path / PARTIAL / "trees.jsonl"
    finished.parent.mkdir(exist_ok=True)
    resumed = read_trees(finished)
    trees = {name: tree for name, tree in before.items() if tree.is_informative} | _by_problem(resumed)
    to_do = [problem for problem in mine if problem.problem_id not in trees]
    progress = Progress(f"search {iteration}.{shard}" + (" again" if earlier else ""), len(to_do))
    observations: dict[str, float] = {}
    with TreeWriter(finished) as writer, open_grader(config, config.problems.dataset) as grader:

        def on_tree(tree: SearchTree) -> None:
            writer.append(tree)
            trees[tree.problem_id] = tree
            progress.advance()

        if to_do:
            engine = open_policy(config, policy, to_do)
            stats = search_trees(
                to_do,
                engine,
                grader,
                _search_config(config, earlier),
                seed=derive_seed(config.seed, "search", iteration),
                step_delimiter=format_of(to_do[0].dataset).step_delimiter,
                on_tree=on_tree,
                resume={p.problem_id: before[p.problem_id] for p in to_do if p.problem_id in before},
            )
            observations = stats.model_dump()
            observations |= {"batch_invariant": float(engine.batch_invariant), "num_resumed": float(len(resumed))}
    searched = [trees[problem.problem_id] for problem in mine]
    write_trees_parquet(searched, entry.path / TREES)
    return Done(len(searched), observations | _totals(searched, before.values()))


def _by_problem(trees: Iterable[SearchTree]) -> dict[str, SearchTree]:
    return {tree.problem_id: tree for tree in trees}


def _totals(trees: Collection[SearchTree], earlier: Collection[SearchTree]) -> dict[str, float]:
    """What the whole search added, over all processes that worked on it; the other observations are the last one's."""
    return {
        f"total/{name}": sum(getattr(t, name) for t in trees) - sum(getattr(t, name) for t in earlier)
        for name in TOTALS
    }


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
