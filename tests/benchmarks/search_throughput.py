"""The search against simpler schedules on the same kind of engine, the same problems and config.

1. ``raw``: as many independent rollouts as the search draws, all submitted at once. Nothing keeps an engine
   busier; no tree could use them.
2. ``sequential``: one problem at a time, one simulation at a time.
3. ``lockstep``: as many trees as the engine has rows, one simulation of each per round, and a barrier after every
   round. More trees at once were slower: their prefixes push each other out of the engine's cache.

The last two get a part of the problems: their rates do not depend on how many there are. They exist here
only. Tokens are counted by the engine, end-of-sequence tokens included, on all sides.

Raw rollouts and the search are so close that the machine's own ups and downs (a third within seconds, measured)
would decide between turns of a minute. So they run abreast, each on an engine of its own: whichever has
finished fewer rollouts computes, and its clock alone runs. Turns are short beside those ups and downs and long
beside what a change of engines costs the processor's caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from benchmarks.measuring import Cost, Figure, clock_for, in_turns, measure, speedup

from pipeline_lib.config import SearchConfig
from pipeline_lib.grading import GradingPool
from pipeline_lib.policy.protocol import Policy, SampleRequest, SampleResult, sample_all
from pipeline_lib.policy.redraw import draw_all
from pipeline_lib.search import SearchStats, TokenTexts, TreeBuilder, sampling_params, search_trees, split_steps
from pipeline_lib.search.rollout import Rollout, rollout_from_result
from pipeline_lib.search.simulation import Simulation, SimulationWindow
from pipeline_lib.seeding import derive_generator, derive_seed
from pipeline_lib.types import Outcome, Problem, SearchTree

ROLLOUTS_PER_TURN = 32
WARM_UP = 4  # times as many rollouts as an engine has rows: each size of a batch costs something when it is first met

Draw = tuple[Problem, SimulationWindow, Simulation]


def search_figures(
    policy: Policy,
    other: Policy,
    problems: Sequence[Problem],
    config: SearchConfig,
    *,
    rounds: int = 2,
    num_sequential: int = 2,
) -> tuple[list[Figure], list[SearchTree]]:
    """The figures of the room ``search``, and the trees of all problems.

    Args:
        policy: nothing in flight.
        other: the same model and capacity, for the raw rollouts.
        problems: of one dataset.
        config: of the search.
        rounds: turns of those schedules that take turns.
        num_sequential: problems that the sequential schedule gets; the lockstep schedule gets one or two groups.
    """
    few, some = problems[:num_sequential], problems[: 2 * policy.capacity]
    one_by_one = config.model_copy(update={"parallel_simulations": 1})
    raw, trees, stats = throughput_figure("search.throughput_vs_raw", policy, other, problems, config, target=0.9)

    def sequential(turn: int) -> None:
        for problem in few:
            _search(policy, [problem], one_by_one, turn, [])

    works: dict[str, Callable[[int], object]] = {
        "search": lambda turn: _search(policy, some, config, turn, []),
        "lockstep": lambda turn: _lockstep(policy, some, config, turn),
        "sequential": sequential,
    }
    costs = in_turns({name: partial(_tokens, policy, work) for name, work in works.items()}, rounds=rounds)
    compare = partial(speedup, clock=clock_for(costs["sequential"]))
    names = ("search_tokens", "sequential_tokens"), ("search_tokens", "lockstep_tokens")
    return [
        raw,
        compare("search.speedup_vs_sequential", costs["search"], costs["sequential"], target=8.0, labels=names[0]),
        compare("search.speedup_vs_lockstep", costs["search"], costs["lockstep"], target=1.1, labels=names[1]),
        Figure("search.tokens_kept_share", stats.tokens_kept_share, 0.98, details={"tokens": stats.tokens_generated}),
    ], trees


def throughput_figure(
    name: str, policy: Policy, other: Policy, problems: Sequence[Problem], config: SearchConfig, *, target: float
) -> tuple[Figure, list[SearchTree], SearchStats]:
    """Tokens per second of the search over those of as many independent rollouts, abreast; trees and counters.

    Args:
        name: of the figure.
        policy, other, problems, config: see `search_figures`.
        target: lower bound.
    """
    num_first = -(-WARM_UP * policy.capacity // config.num_simulations)
    for engine in (policy, other):
        sample_all(engine, raw_requests(engine, problems[:num_first], config, seed=1))
    raw = _RawRollouts(other)
    trees: list[SearchTree] = []
    stats: list[SearchStats] = []

    def search(_: int) -> None:
        raw.start(problems, config, seed=0)
        stats.append(_search(cast(Policy, _Abreast(policy, raw)), problems, config, 0, trees))
        raw.catch_up(math.inf)

    cost = measure(partial(_tokens, policy, search, 0)).without(raw.cost)
    labels = ("search_tokens", "raw_tokens")
    figure = speedup(name, [cost], [raw.cost], clock=clock_for([raw.cost]), target=target, labels=labels)
    figure.details.update(
        # The same rollouts cost the search fewer tokens: it starts where others have been.
        tokens_saved_by_prefixes=round(1 - cost.amount / raw.cost.amount, 4),
        engine_idle_share=round(stats[0].engine_idle_share, 4),
        problems=len(problems),
        rollouts=stats[0].num_rollouts,
    )
    return figure, trees, stats[0]


class _RawRollouts:
    """Independent rollouts on an engine of their own, advanced a little at a time.

    Attributes:
        num_finished: rollouts.
        cost: tokens, and the time that was spent here.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.num_finished = 0
        self.cost = Cost(0, 0, 0)

    def start(self, problems: Sequence[Problem], config: SearchConfig, seed: int) -> None:
        """Submits `num_simulations` rollouts of every problem."""
        self._charge(lambda _: self._policy.submit(raw_requests(self._policy, problems, config, seed=seed)))

    def catch_up(self, num_finished: float) -> None:
        """Runs the engine until so many have finished, or all."""

        def run(_: int) -> None:
            while self.num_finished < num_finished and self._policy.num_in_flight:
                self.num_finished += len(self._policy.poll())

        self._charge(run)

    def _charge(self, work: Callable[[int], object]) -> None:
        self.cost += measure(partial(_tokens, self._policy, work, 0))


class _Abreast:
    """`policy`, but that raw rollouts catch up whenever they are a turn behind; a `Policy`."""

    def __init__(self, policy: Policy, raw: _RawRollouts) -> None:
        self._policy = policy
        self._raw = raw
        self._num_finished = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def poll(self) -> list[SampleResult]:
        results = self._policy.poll()
        self._num_finished += len(results)
        if self._num_finished - self._raw.num_finished >= ROLLOUTS_PER_TURN:
            self._raw.catch_up(self._num_finished)
        return results


def raw_requests(
    policy: Policy, problems: Sequence[Problem], config: SearchConfig, *, seed: int
) -> list[SampleRequest]:
    """`num_simulations` independent rollouts of every problem."""
    params = sampling_params(config, config.max_new_tokens)
    requests = []
    for problem in problems:
        prompt = policy.codec.encode_prompt(problem.question)
        for index in range(config.num_simulations):
            key = f"{problem.problem_id}#{index}"
            requests.append(SampleRequest(key, prompt, params, derive_seed(seed, problem.problem_id, index)))
    return requests


def batch_variance(policy: Policy, other: Policy, requests: Sequence[SampleRequest]) -> Figure:
    """Share of rollouts that come out otherwise when the same requests meet other company.

    Args:
        policy: gets all requests at once.
        other: the same model with another capacity; gets them shuffled, a few at a time.
        requests: what both are asked.
    """
    expected = sample_all(policy, requests)
    order = derive_generator("benchmark", "batches").permutation(len(requests))
    found: dict[str, SampleResult] = {}
    for part in np.array_split(order, max(1, len(requests) // 7)):
        other.submit([requests[int(index)] for index in part])
        found |= {result.request_id: result for result in other.poll()}
    while other.num_in_flight:
        found |= {result.request_id: result for result in other.poll()}
    num_different = sum(not np.array_equal(expected[key].token_ids, found[key].token_ids) for key in expected)
    details = {"rollouts": len(requests), "capacities": [policy.capacity, other.capacity]}
    details["claimed_invariant"] = policy.batch_invariant
    return Figure("policy.batch_variance_share", num_different / len(requests), 0.0, at_least=False, details=details)


def _tokens(policy: Policy, work: Callable[[int], object], turn: int) -> float:
    """Tokens that the engine generated for `work`."""
    before = policy.stats.tokens_generated
    work(turn)
    return float(policy.stats.tokens_generated - before)


def _search(
    policy: Policy, problems: Sequence[Problem], config: SearchConfig, seed: int, trees: list[SearchTree]
) -> SearchStats:
    with GradingPool() as grader:
        return search_trees(problems, policy, grader, config, seed=seed, on_tree=trees.append)


def _lockstep(policy: Policy, problems: Sequence[Problem], config: SearchConfig, seed: int) -> None:
    """All trees of a group march: select one simulation each, sample all, grade all, back all up, again."""
    one_each = config.model_copy(update={"parallel_simulations": 1})
    for start in range(0, len(problems), policy.capacity):
        _march_together(policy, problems[start : start + policy.capacity], one_each, seed)


def _march_together(policy: Policy, problems: Sequence[Problem], config: SearchConfig, seed: int) -> None:
    marching: list[Draw] = []
    for problem in problems:
        prompt = policy.codec.encode_prompt(problem.question)
        tree_seed = derive_seed(seed, problem.problem_id)
        tree = TreeBuilder(problem.problem_id, policy.policy_id, prompt, seed=tree_seed, config=config)
        simulations = SimulationWindow(tree, config)
        marching += [(problem, simulations, simulation) for simulation in simulations.start()]
    with GradingPool() as grader:
        while marching:
            marching = _march(policy, grader, config, marching)


def _march(policy: Policy, grader: GradingPool, config: SearchConfig, draws: Sequence[Draw]) -> list[Draw]:
    """One round; the draws of the next."""
    results = draw_all(policy, [simulation.request for _, _, simulation in draws])
    rollouts: dict[str, Rollout] = {}
    texts = TokenTexts()
    for problem, simulations, simulation in draws:
        key = simulation.request.request_id
        split = partial(split_steps, codec=policy.codec, texts=texts)
        depth, room = simulations.depth(simulation), simulation.request.params.max_new_tokens
        rollouts[key] = rollout_from_result(
            results[key], split, policy.codec, depth=depth, max_new_tokens=room, config=config
        )
        if rollouts[key].outcome is Outcome.OPEN:
            grader.submit(key, simulations.prefix_text(simulation) + rollouts[key].text, problem.answer)
    while grader.num_in_flight:
        for key, grade in grader.poll(block=True):
            rollouts[key] = rollouts[key].with_grade(grade)
    return [
        (problem, simulations, following)
        for problem, simulations, simulation in draws
        for following in simulations.finish(simulation, rollouts[simulation.request.request_id])
    ]
