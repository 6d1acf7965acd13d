"""The simulations of one tree: which may start now, and in which order their results count.

One idea: an in-order window. Simulation i is selected when exactly the results of simulations
0 .. i - parallel_simulations are in the tree, however late or early they came; a result that
comes before its turn waits. So a tree is a function of its own results alone: not of batching, of
the order of problems, or of how often the run was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_lib.config import SearchConfig
from pipeline_lib.policy.protocol import SampleRequest, SamplingParams
from pipeline_lib.search.rollout import Rollout
from pipeline_lib.search.tree import TreeBuilder
from pipeline_lib.seeding import derive_seed
from pipeline_lib.types import SearchTree


@dataclass(frozen=True, slots=True)
class Simulation:
    """One simulation that was started: a rollout to be drawn at one node.

    Args:
        index: number of the simulation in its tree, from 0.
        node: index of the node that the rollout continues.
        request: what the engine is asked.
    """

    index: int
    node: int
    request: SampleRequest


def extra_simulations(trees: Sequence[SearchTree], config: SearchConfig) -> int:
    """Simulations that every undecided tree may add, where stopped trees leave what they saved to them.

    ``floor(sum over stopped trees of (num_simulations - done) / undecided trees)``; 0 where none is undecided.

    Source: our choice.

    Args:
        trees: of all problems of an iteration, whatever shards they were searched in.
        config: what they were searched with.

    Example: two trees that stopped after 4 of 16 and three undecided ones: 24 // 3 = 8 more for each of the three.
    """
    saved = sum(config.num_simulations - tree.num_simulations for tree in trees if not tree.is_informative)
    num_undecided = sum(tree.is_informative for tree in trees)
    return max(0, saved) // num_undecided if num_undecided else 0


class SimulationWindow:
    """Starts one tree's simulations and inserts their results in order, within the tree's budget.

    Args:
        tree: new, or the continuation of a finished one; numbering goes on at its `num_simulations`.
        config: `num_simulations`, `parallel_simulations`, `max_tokens_per_problem`, `stop_after_equal` and the sampling
            settings are used.
    """

    def __init__(self, tree: TreeBuilder, config: SearchConfig) -> None:
        self._tree = tree
        self._config = config
        self._next = self._inserted = tree.num_simulations
        self._early: dict[int, tuple[Simulation, Rollout]] = {}

    @property
    def is_complete(self) -> bool:
        """True when nothing is in flight and nothing more may start."""
        return self._inserted == self._next and not self._may_start()

    def start(self) -> list[Simulation]:
        """Selects as many simulations as the window allows."""
        started = []
        while self._may_start():
            started.append(self._select())
        return started

    def finish(self, simulation: Simulation, rollout: Rollout) -> list[Simulation]:
        """Takes results in any order, inserts those whose turn it is, and starts what the window then allows.

        Args:
            simulation: as `start` or `finish` returned it.
            rollout: its result, graded.

        Returns:
            The simulations started, which may be none.
        """
        self._early[simulation.index] = (simulation, rollout)
        started = []
        while self._inserted in self._early:
            self._insert(*self._early.pop(self._inserted))
            started += self.start()
        return started

    def build(self) -> SearchTree:
        """The tree as it stands."""
        return self._tree.build()

    def prefix_text(self, simulation: Simulation) -> str:
        """Text of the steps that the rollout of `simulation` continues."""
        return self._tree.prefix_text(simulation.node)

    def depth(self, simulation: Simulation) -> int:
        """Steps on the path that the rollout of `simulation` continues."""
        return self._tree.depth(simulation.node)

    def _may_start(self) -> bool:
        budget = self._config.max_tokens_per_problem
        return (
            self._next < self._config.num_simulations
            and self._next - self._inserted < self._config.parallel_simulations
            and (budget is None or self._tree.tokens_generated < budget)
            and self._may_teach()
        )

    def _may_teach(self) -> bool:
        """False while the first `stop_after_equal` rollouts are waited for, and for ever once they agree."""
        first = self._config.stop_after_equal
        if first is None:
            return True
        if self._tree.num_rollouts < first:
            return self._tree.num_rollouts + self._next - self._inserted < first
        return not self._tree.is_unanimous

    def _select(self) -> Simulation:
        node, index = self._tree.select(), self._next
        self._next += 1
        return Simulation(index, node, request_at(self._tree, node, index, self._config))

    def _insert(self, simulation: Simulation, rollout: Rollout) -> None:
        self._tree.insert_rollout(simulation.node, rollout)
        self._inserted += 1


def sampling_params(config: SearchConfig, max_new_tokens: int) -> SamplingParams:
    """How the tokens of rollouts are drawn.

    Args:
        config: `temperature`, `top_p`, `top_k`, `min_p` and `selection` are used.
        max_new_tokens: of one rollout, at least 1.
    """
    asks = config.selection == "entropy"
    return SamplingParams(max_new_tokens, config.temperature, config.top_p, config.top_k, config.min_p, logprobs=asks)


def request_at(tree: TreeBuilder, node: int, index: int, config: SearchConfig) -> SampleRequest:
    """What simulation `index` asks the engine for: a whole continuation of the steps down to `node`.

    Its seed is ``derive_seed(tree.seed, index)``, so a simulation draws the same whenever it is its turn.

    Args:
        tree: whose prompt and steps are continued.
        node: as returned by `TreeBuilder.select`.
        index: place in the tree's order, from 0.
        config: `max_new_tokens` and what `sampling_params` reads are used.
    """
    params = sampling_params(config, config.max_new_tokens - tree.path_tokens(node))
    request_id, seed = f"{tree.problem_id}#{index}", derive_seed(tree.seed, index)
    prefix_tokens = tree.path_tokens(node)
    return SampleRequest(request_id, tree.prefix_token_ids(node), params, seed, num_prefix_tokens=prefix_tokens)
