"""Searches many problems at once on one engine, without a barrier.

One idea: events. When the engine reports a finished rollout, only that tree advances, and the free slot is
filled at once: from the oldest open tree that has a simulation ready, else by opening the next problem. So few
trees are open and problems finish early. The last problems are opened together and advance evenly: one after
the other, the very last would keep the engine up for a few rollouts at a time. Grading happens elsewhere; the
search waits for a grade only when the engine has nothing to do.

Departures from the paper (arXiv 2501.01478), which says nothing about scheduling:
    1. Several simulations of a tree are in flight under virtual loss (see `simulation`, `tree`).
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from pipeline_lib.config import SearchConfig, Truncated
from pipeline_lib.grading.grader import Grader
from pipeline_lib.grading.workers.verifier import Verdict
from pipeline_lib.policy.protocol import Policy, SampleRequest, SampleResult
from pipeline_lib.policy.redraw import MAX_FAILED_SHARE, Redraws
from pipeline_lib.search.alignment import TokenTexts
from pipeline_lib.search.rollout import Rollout, rollout_from_result
from pipeline_lib.search.simulation import Simulation, SimulationWindow
from pipeline_lib.search.stats import SearchStats
from pipeline_lib.search.steps import split_steps
from pipeline_lib.search.tree import TreeBuilder
from pipeline_lib.seeding import derive_seed
from pipeline_lib.types import Int32Array, Outcome, Problem, SearchTree

# One request waits for every three slots: the engine refills rows at once, and may hand over results in groups.
QUEUE_SHARE = 3
SLOTS_PER_LAST_TREE = 2  # so many trees end together; each may fill `parallel_simulations` slots


def _no_others(_question: str) -> Sequence[Int32Array]:
    return ()


def search_trees(
    problems: Sequence[Problem],
    policy: Policy,
    grader: Grader,
    config: SearchConfig,
    *,
    seed: int,
    on_tree: Callable[[SearchTree], None],
    resume: Mapping[str, SearchTree] = MappingProxyType({}),
    truncated: Truncated = "wrong",
    max_failed_share: float = MAX_FAILED_SHARE,
    prompts: Callable[[str], Sequence[Int32Array]] = _no_others,
) -> SearchStats:
    """Searches every problem and hands over each tree as soon as it is complete.

    With a batch-invariant policy and a grader whose grades depend on the texts alone, each tree is
    a function of its problem, `seed`, `config` and `truncated`: `capacity`, the order of problems, restarts and
    rollouts that the engine failed to give and was asked for again change only when it is finished.

    Args:
        problems: what is searched; their ids must differ.
        policy: samples the rollouts; nothing else may be in flight on it.
        grader: grades the answers; nothing else may be in flight on it.
        config: limits and constants of every tree; `num_shards` is not looked at.
        seed: tree p draws from ``derive_seed(seed, p)``, p its problem id; a resumed tree goes on with its own.
        on_tree: called with each complete tree, in order of completion.
        resume: trees by problem id whose search is continued up to `num_simulations`.
        truncated: what a rollout that passes a limit counts as.
        max_failed_share: share of the rollouts that the engine may fail to give, in [0, 1]; see `policy.redraw`.
        prompts: other prompts of a question, behind which its simulations are sampled in turn; the tree keeps the
            policy's own, which is trained on. Where there are none, they are sampled behind that.

    Returns:
        Counters of this call alone: what a resumed tree held before is not counted.

    Raises:
        ValueError: two problems share an id, an id to resume is not among the problems, or a tree
            to resume was sampled by another policy.
        EngineError: the engine failed too often; the trees that were handed over are right.
    """
    _check(problems, policy, resume)
    num_expected = len(problems) * config.num_simulations - sum(tree.num_simulations for tree in resume.values())
    draws = Redraws(policy, num_expected=num_expected, max_failed_share=max_failed_share)
    split = partial(
        split_steps,
        codec=policy.codec,
        delimiter=config.step_delimiter,
        markdown=config.markdown_steps,
        texts=TokenTexts(),
    )
    read = partial(rollout_from_result, split=split, codec=policy.codec, config=config, truncated=truncated)
    return _Scheduler(problems, policy, draws, read, grader, config, seed, on_tree, resume, prompts).run()


def _check(problems: Sequence[Problem], policy: Policy, resume: Mapping[str, SearchTree]) -> None:
    ids = [problem.problem_id for problem in problems]
    distinct = set(ids)
    if len(distinct) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"problem_id {twice!r} stands twice among the problems to search; make ids unique")
    for problem_id, tree in resume.items():
        if problem_id not in distinct:
            raise ValueError(f"tree {problem_id!r} is to be resumed but its problem is not among those to search")
        if tree.policy_id != policy.policy_id:
            raise ValueError(
                f"tree {problem_id!r} was sampled by {tree.policy_id!r}, not by {policy.policy_id!r}; search it anew"
            )


@dataclass(slots=True)
class _OpenTree:
    """A problem under search; `order` is the place in which it was opened."""

    order: int
    problem: Problem
    simulations: SimulationWindow
    prompts: Sequence[Int32Array]

    def asked(self, simulation: Simulation) -> SampleRequest:
        """The simulation's request, behind the prompt whose turn it is."""
        if not self.prompts:
            return simulation.request
        prompt, request = self.prompts[simulation.index % len(self.prompts)], simulation.request
        answer = request.token_ids[len(request.token_ids) - request.num_prefix_tokens :]
        return replace(request, token_ids=np.concatenate([prompt, answer]))


@dataclass(slots=True)
class _RunningSimulation:
    """One simulation on its way through the engine and the grader."""

    tree: _OpenTree
    simulation: Simulation
    rollout: Rollout | None = None


class _Scheduler:
    """The state of one `search_trees`; a running simulation is in `_ready`, `_sampling` or `_grading`."""

    def __init__(
        self,
        problems: Sequence[Problem],
        policy: Policy,
        draws: Redraws,
        read: Callable[..., Rollout],
        grader: Grader,
        config: SearchConfig,
        seed: int,
        on_tree: Callable[[SearchTree], None],
        resume: Mapping[str, SearchTree],
        prompts: Callable[[str], Sequence[Int32Array]],
    ) -> None:
        self._unopened: Iterator[tuple[int, Problem]] = iter(enumerate(problems))
        self._first_of_last = max(0, len(problems) - policy.capacity // SLOTS_PER_LAST_TREE)
        self._policy = policy
        self._draws = draws
        self._read = read
        self._grader = grader
        self._config = config
        self._seed = seed
        self._on_tree = on_tree
        self._resume = resume
        self._prompts = prompts
        self._ready: list[tuple[int, int, int, _RunningSimulation]] = []
        self._sampling: dict[str, _RunningSimulation] = {}
        self._grading: dict[str, _RunningSimulation] = {}
        self._counters: Counter[str] = Counter()
        self._in_flight_s = 0.0

    def run(self) -> SearchStats:
        engine = self._policy.stats
        slot_steps, capacity_steps = engine.slot_steps, engine.capacity_steps
        started = time.perf_counter()
        self._refill()
        while self._sampling or self._grading:
            engine_is_idle = not self._sampling
            if not engine_is_idle:
                self._poll_policy()
            for key, verdict in self._grader.poll_verdicts(block=engine_is_idle):
                self._on_verdict(key, verdict)
            self._refill()
        self._counters["slot_steps"] = engine.slot_steps - slot_steps
        self._counters["capacity_steps"] = engine.capacity_steps - capacity_steps
        self._counters.update(num_errors=self._draws.num_errors, num_redrawn=self._draws.num_redrawn)
        seconds = time.perf_counter() - started
        return SearchStats(seconds=seconds, in_flight_s=self._in_flight_s, **self._counters)

    def _refill(self) -> None:
        """Tops the engine up from the oldest open trees, then from new problems."""
        num_free = self._policy.capacity + self._policy.capacity // QUEUE_SHARE + 1 - len(self._sampling)
        requests: list[SampleRequest] = []
        while len(requests) < num_free and (self._ready or self._open_more()):
            if self._ready:  # a problem that was just opened need not have any: a resumed tree may be complete
                running = heapq.heappop(self._ready)[-1]
                self._sampling[running.simulation.request.request_id] = running
                requests.append(running.tree.asked(running.simulation))
        if requests:
            self._draws.submit(requests)

    def _open_more(self) -> bool:
        """Opens the next problem, and all others with it once it is one of the last; False when none is left."""
        following = next(self._unopened, None)
        if following is None:
            return False
        order, problem = following
        self._open(order, problem)
        if order >= self._first_of_last:
            for order, problem in self._unopened:
                self._open(order, problem)
        return True

    def _open(self, order: int, problem: Problem) -> None:
        """Starts the problem's tree, or goes on with the one to resume, and queues its first simulations."""
        resumed = self._resume.get(problem.problem_id)
        if resumed is not None:
            tree = TreeBuilder.from_tree(resumed, self._config)
        else:
            prompt = self._policy.codec.encode_prompt(problem.question)
            seed = derive_seed(self._seed, problem.problem_id)
            tree = TreeBuilder(problem.problem_id, self._policy.policy_id, prompt, seed=seed, config=self._config)
        opened = _OpenTree(order, problem, SimulationWindow(tree, self._config), self._prompts(problem.question))
        self._queue(opened, opened.simulations.start())

    def _queue(self, tree: _OpenTree, started: list[Simulation]) -> None:
        """Queues what `tree` started, or hands the tree over when it is complete."""
        turn = min(tree.order, self._first_of_last)  # the last problems share one turn, so they advance evenly
        for simulation in started:
            heapq.heappush(self._ready, (turn, simulation.index, tree.order, _RunningSimulation(tree, simulation)))
        if not started and tree.simulations.is_complete:
            self._hand_over(tree.simulations.build())

    def _poll_policy(self) -> None:
        in_flight, started = len(self._sampling), time.perf_counter()
        results = self._draws.poll()
        self._in_flight_s += in_flight * (time.perf_counter() - started)
        for result in results:
            self._on_sample(result)

    def _on_sample(self, result: SampleResult) -> None:
        running = self._sampling.pop(result.request_id)
        simulations = running.tree.simulations
        depth, params = simulations.depth(running.simulation), running.simulation.request.params
        rollout = self._read(result, depth=depth, max_new_tokens=params.max_new_tokens)
        if rollout.outcome is Outcome.OPEN:
            running.rollout = rollout
            self._grading[result.request_id] = running
            text = simulations.prefix_text(running.simulation) + rollout.text
            self._grader.submit(result.request_id, text, running.tree.problem.answer)
        else:
            self._queue(running.tree, simulations.finish(running.simulation, rollout))

    def _on_verdict(self, key: str, verdict: Verdict) -> None:
        running = self._grading.pop(key)
        assert running.rollout is not None
        rollout = running.rollout.with_grade(verdict.grade, verdict.reward)
        self._queue(running.tree, running.tree.simulations.finish(running.simulation, rollout))

    def _hand_over(self, tree: SearchTree) -> None:
        """Counts what this search added to `tree` and gives it away."""
        before = self._resume.get(tree.problem_id)
        self._counters["num_problems"] += 1
        for name in ("num_rollouts", "tokens_generated", "tokens_kept", "num_timeouts"):
            self._counters[name] += getattr(tree, name) - (0 if before is None else getattr(before, name))
        self._on_tree(tree)
