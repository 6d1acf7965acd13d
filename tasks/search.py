"""Searches an iteration's problems, shard by shard, and gathers the trees.

One idea: how many shards there are is no part of the result. A tree's seed comes from its problem, so whatever the
sharding, the same trees stand in one file in the same order; later stages know that file alone. Where it is there,
nothing is searched, and shards of another number that a run left unfinished lend their trees to those of this one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline_lib.config import PipelineConfig, SearchConfig
from pipeline_lib.grading.workers.verifier import MATH
from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.search import (
    TreeWriter,
    read_counts,
    read_trees,
    read_trees_parquet,
    search_trees,
    step_rules,
    write_trees_parquet,
)
from pipeline_lib.search.simulation import extra_simulations
from pipeline_lib.search.tree_files import TREES_FILE
from pipeline_lib.seeding import derive_seed
from pipeline_lib.store import PARTIAL, Entry
from pipeline_lib.types import PolicyRef, Ref, SearchTree
from tasks.problems import PROBLEMS
from tasks.runtime.engines import check_trainable, engine_spec, open_policy
from tasks.runtime.graders import grading_spec, open_grader
from tasks.runtime.keys import key_of
from tasks.runtime.progress import Progress
from tasks.runtime.prompts import explored_spec, search_prompts
from tasks.runtime.runner import run_each
from tasks.runtime.stage import Done, open_store, stage

TREES = TREES_FILE
SHARDINGS = range(1, 65)  # numbers of shards whose trees are looked for before a search; more than 64 GPUs are rare
FIRST_VERSION = 1  # of `search_shard` in version 0.1.0, which did not gather


def _spec(
    *,
    config: PipelineConfig,
    problems: Ref,
    policy: PolicyRef,
    iteration: int,
    earlier: tuple[Ref, ...],
    spends_saved: bool = False,
    found: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What the trees of an iteration depend on, `found` left out: it says where equal ones are."""
    search = config.search if spends_saved else _search_config(config, earlier)
    return {
        "search": key_of(search, without={"num_shards", "spend_saved"}),
        **({"spends": "what stopped trees saved"} if spends_saved else {}),
        **step_rules(config.search, model=config.policy.model),
        "engine": engine_spec(config, policy, config.problems.dataset),
        "policy_id": policy.policy_id,
        **grading_spec(config, config.problems.dataset),
        **({"reward": "a verifier's number"} if config.grader != MATH else {}),  # its grade before
        **explored_spec(config),
        "seed": config.seed,
        "iteration": iteration,
        **({"truncated": config.truncated} if config.truncated != "wrong" else {}),  # as version 0.1.0 did
    }


def _shard_spec(*, shard: int, **search: Any) -> dict[str, Any]:
    return _spec(**search) | {"shard": [shard, search["config"].search.num_shards]}


def _search_config(config: PipelineConfig, earlier: tuple[Ref, ...]) -> SearchConfig:
    """What a shard is searched with: twice as much of a tree where it goes on from earlier ones, the audit's remedy."""
    return _with_budget(config.search, 2 * config.search.num_simulations) if earlier else config.search


def _with_budget(search: SearchConfig, num_simulations: int) -> SearchConfig:
    """For trees that go on: so many simulations, tokens in proportion, and none stops because its first ones agree."""
    tokens = search.max_tokens_per_problem
    if tokens is not None:
        tokens = tokens * num_simulations // search.num_simulations
    more = {"num_simulations": num_simulations, "max_tokens_per_problem": tokens, "stop_after_equal": None}
    return search.model_copy(update=more)


def _holds_no_failure(entry: Entry, **_: Any) -> bool:
    """Version 0.1.0 counted what the engine failed to answer as wrong; trees with such rollouts are made again."""
    observed = entry.observations()
    return not observed.get("num_errors") or "num_redrawn" in observed


@stage(_shard_spec, version=2, run_name="search {iteration} shard {shard}", still_holds=_holds_no_failure)
def search_shard(
    entry: Entry,
    *,
    config: PipelineConfig,
    problems: Ref,
    policy: PolicyRef,
    iteration: int,
    shard: int,
    earlier: tuple[Ref, ...],
    spends_saved: bool = False,
    found: tuple[str, ...] = (),
) -> Done:
    """Searches every ``num_shards``-th problem; finished trees are appended as they come and outlive a kill.

    Args:
        entry: filled with ``trees.parquet``.
        config: policy, search, grader and seed.
        problems: the iteration's problems.
        policy: what is sampled.
        iteration: part of every seed.
        shard: which of ``search.num_shards``.
        earlier: trees of all shards to go on with: informative ones are kept, the others searched further.
        spends_saved: the other way round: informative ones are searched further, with what the others saved.
        found: URIs of entries with trees that this very search made under another ``search.num_shards``.
    """
    mine = read_problems(open_store().open(problems) / PROBLEMS)[shard :: config.search.num_shards]
    names = {problem.problem_id for problem in mine}
    searched_before = load_trees(earlier)
    before = _by_problem(searched_before, names)
    search = _search_config(config, earlier)
    if spends_saved:
        more = extra_simulations(searched_before, config.search)
        search = _with_budget(config.search, config.search.num_simulations + more)
    finished = entry.path / PARTIAL / "trees.jsonl"
    finished.parent.mkdir(exist_ok=True)
    resumed = read_trees(finished)
    trees = {name: tree for name, tree in before.items() if tree.is_informative != spends_saved}
    trees |= _by_problem(load_trees(_refs(found), names), names) | _by_problem(resumed, names)
    to_do = [problem for problem in mine if problem.problem_id not in trees]
    progress = Progress(f"search {iteration}.{shard}" + _pass_name(earlier, spends_saved), len(to_do))
    observations: dict[str, float] = {}
    with TreeWriter(finished) as writer, open_grader(config, config.problems.dataset) as grader:

        def on_tree(tree: SearchTree) -> None:
            writer.append(tree)
            trees[tree.problem_id] = tree
            progress.advance()

        if to_do:
            check_trainable(config, policy)
            engine = open_policy(config, policy, to_do)
            progress.count_tokens(lambda: engine.stats.tokens_generated)
            stats = search_trees(
                to_do,
                engine,
                grader,
                search,
                seed=derive_seed(config.seed, "search", iteration),
                on_tree=on_tree,
                resume={p.problem_id: before[p.problem_id] for p in to_do if p.problem_id in before},
                truncated=config.truncated,
                max_failed_share=config.policy.max_failed_share,
                prompts=search_prompts(config, config.problems.dataset),
            )
            observations = stats.model_dump()
            observations |= {"batch_invariant": float(engine.batch_invariant), "num_resumed": float(len(resumed))}
    searched = [trees[problem.problem_id] for problem in mine]
    write_trees_parquet(searched, entry.path / TREES)
    return Done(len(searched), observations)


def _pass_name(earlier: tuple[Ref, ...], spends_saved: bool) -> str:
    """What a search is called behind its iteration: nothing, where it is the first one."""
    return (" on" if spends_saved else " again") if earlier else ""


def _by_problem(trees: Iterable[SearchTree], names: Collection[str]) -> dict[str, SearchTree]:
    return {tree.problem_id: tree for tree in trees if tree.problem_id in names}


def _refs(uris: Sequence[str]) -> tuple[Ref, ...]:
    return tuple(map(open_store().ref, uris))


@stage(_spec, run_name="gather {iteration}")
def gather_trees(
    entry: Entry,
    *,
    found: tuple[str, ...] = (),
    problems: Ref,
    earlier: tuple[Ref, ...],
    policy: PolicyRef,
    iteration: int,
    config: PipelineConfig,
    spends_saved: bool = False,
) -> Done:
    """Writes the trees of all shards into one file; its seconds, and what else was measured, are theirs together.

    Args:
        entry: filled with ``trees.parquet``.
        found: URIs of the shards.
        problems: those that were searched; each has a tree.
        earlier: what the search went on from. This and what follows only name the entry.
        policy: what was sampled.
        iteration: whose trees they are.
        config: of the whole run.
        spends_saved: what was measured is that of both passes.
    """
    shards = _refs(found)
    trees = load_trees(shards)
    assert len(trees) == problems.num_rows, "all shards are there"
    write_trees_parquet(trees, entry.path / TREES)
    measured = (*earlier, *shards) if spends_saved else shards
    together = _together([open_store().observations(ref) for ref in measured])
    if spends_saved and "num_problems" in together:  # both passes went through them
        together["num_problems"] = min(together["num_problems"], float(len(trees)))
    return Done(len(trees), together)


def _together(shards: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Observations of shards as those of one search: sums, and whether all of them were batch-invariant."""
    names = dict.fromkeys(name for shard in shards for name in shard)
    total = {name: sum(shard.get(name, 0.0) for shard in shards) for name in names}
    invariant = [shard["batch_invariant"] for shard in shards if "batch_invariant" in shard]
    return {**total, **({"batch_invariant": min(invariant)} if invariant else {})}


def load_trees(refs: Sequence[Ref], problem_ids: Collection[str] | None = None) -> list[SearchTree]:
    """The trees of some entries, all or those that are named, by problem id."""
    trees = [tree for ref in refs for tree in read_trees_parquet(open_store().open(ref) / TREES, problem_ids)]
    return sorted(trees, key=lambda tree: tree.problem_id)


def total_counts(refs: Sequence[Ref]) -> dict[str, float]:
    """Rollouts, tokens and timeouts by name, added up over trees: over all processes that worked on them."""
    counts = [read_counts(open_store().open(ref) / TREES) for ref in refs]
    return {name: float(sum(count[name] for count in counts)) for name in counts[0]}


def search_problems(
    *, config: PipelineConfig, problems: Ref, policy: PolicyRef, iteration: int, earlier: tuple[Ref, ...] = ()
) -> tuple[Ref, ...]:
    """The trees of one iteration: one entry, or the shards of a store that version 0.1.0 filled.

    Shards are a task each; ``runner`` says where they run. With ``spend_saved=undecided`` there is a second pass: what
    is saved is known once all shards are done, and then it does not depend on how many there are.

    Args:
        config: how many shards, and all that the trees depend on.
        problems: the iteration's problems.
        policy: what is sampled.
        iteration: part of every seed.
        earlier: what this function returned before the audit's remedy, to go on from.
    """
    config = config.model_copy(update={"search": config.search.in_iteration(iteration)})
    same: dict[str, Any] = {"config": config, "problems": problems, "policy": policy, "iteration": iteration}
    trees = _search_pass({**same, "earlier": earlier})
    if earlier or not config.search.spends_saved or not extra_simulations(load_trees(trees), config.search):
        return trees
    return _search_pass({**same, "earlier": trees, "spends_saved": True})


def _search_pass(same: Mapping[str, Any]) -> tuple[Ref, ...]:
    """Shards, and the entry that gathers them.

    Args:
        same: the arguments that all shards share.
    """
    config, problems = same["config"], same["problems"]
    if gather_trees.find(**same) is not None:
        return (gather_trees(**same),)
    old = list(_searched(same, version=FIRST_VERSION))
    for shards in old:
        if None not in shards:
            return tuple(ref for ref in shards if ref is not None)
    others = [shards for shards in _searched(same) if len(shards) != config.search.num_shards]
    found = tuple(ref.uri for shards in (*old, *others) for ref in shards if ref is not None)
    numbers = range(min(config.search.num_shards, problems.num_rows))
    calls = [{**same, "shard": number, "found": found} for number in numbers]
    name = f"search {same['iteration']}" + _pass_name(same["earlier"], same.get("spends_saved", False))
    made = run_each(config, search_shard, calls, name=name)
    return (gather_trees(**same, found=tuple(ref.uri for ref in made)),)


def _searched(same: Mapping[str, Any], version: int | None = None) -> Iterator[tuple[Ref | None, ...]]:
    """The search's shards as far as the store has them, for every number of shards of which it has the first one.

    Args:
        same: the arguments that all shards share.
        version: of `search_shard`; None is today's. The first one went on from the trees of its own shard alone.
    """
    for number in dict.fromkeys((same["config"].search.num_shards, *SHARDINGS)):
        search = same["config"].search.model_copy(update={"num_shards": number})
        shared = {**same, "config": same["config"].model_copy(update={"search": search})}

        def find(shard: int, shared: Mapping[str, Any] = shared) -> Ref | None:
            own = {"earlier": shared["earlier"][shard : shard + 1]} if version == FIRST_VERSION else {}
            return search_shard.find(version=version, **{**shared, **own}, shard=shard)

        if find(0) is not None:
            yield tuple(map(find, range(min(number, same["problems"].num_rows))))
