"""The tree of one problem while it grows: select, expand, backup.

One idea: whole rollouts become nodes. A simulation samples a completion from the selected node, and
every step of it is inserted, not only the first; so the later steps already stand there as
candidates when their parent is expanded, and no token is generated twice.

Departures from the paper (arXiv 2501.01478), as far as it is known to us:
    1. Expansion and simulation are one request to the engine.
    2. Siblings whose texts are equal but for white space at the ends are one node; the tokens of
       the first are kept, the one that ended it and how probable they were included.
    3. A step that ended a rollout and one that did not stay apart, whatever their texts, and so do two that ended it
       with different outcomes, or of which a limit cut one off and the policy ended the other.
    4. Rollouts start at a node until it has `num_candidates` visits; then its children are descended into.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline_lib.config import Cutoff, SearchConfig
from pipeline_lib.search.rollout import Rollout
from pipeline_lib.search.selection import entropy_scores, frontier_scores, select
from pipeline_lib.search.steps import NO_SURPRISAL, Step
from pipeline_lib.types import NO_PARENT, NO_TOKEN, ROOT, Int32Array, Outcome, SearchTree

OPEN = int(Outcome.OPEN)
NO_ENDING = (OPEN, int(Cutoff.NONE), None)


class TreeBuilder:
    """A mutable `SearchTree`; lists here, arrays once it is built.

    A node's count is its visits and the simulations in flight through it. A node is exhausted, and
    never selected, when nothing new can be sampled below it: it ended a rollout, a rollout from it
    would pass a limit, or it has `num_candidates` counts and all its children are exhausted.

    Args:
        problem_id: id of the problem whose tree this is.
        policy_id: id of the policy that is sampled.
        prompt_token_ids: `[P]` int32, exactly as sent to the policy.
        seed: the tree's own; simulation i draws from ``derive_seed(seed, i)``.
        config: `num_candidates`, `selection`, `c_uct`, `max_depth` and `max_new_tokens` are used.
    """

    def __init__(
        self, problem_id: str, policy_id: str, prompt_token_ids: Int32Array, *, seed: int, config: SearchConfig
    ) -> None:
        self.problem_id = problem_id
        self.policy_id = policy_id
        self.prompt_token_ids = prompt_token_ids
        self.seed = seed
        self.tokens_generated = 0
        self.tokens_kept = 0
        self.num_timeouts = 0
        self._config = config
        self._parents: list[int] = []
        self._steps: list[Step] = []
        self._visits: list[int] = []
        self._value_sums: list[float] = []
        self._outcomes: list[int] = []
        self._end_token_ids: list[int] = []
        self._depths: list[int] = []
        self._counts: list[int] = []
        self._path_tokens: list[int] = []
        self._is_closed: list[bool] = []
        self._is_exhausted: list[bool] = []
        self._children: list[list[int]] = []
        self._cutoffs: list[int] = []
        self._index: dict[tuple[int, str, int, bool], int] = {}
        self._ignored = [0] * len(Cutoff)
        self._add(NO_PARENT, Step("", np.zeros(0, dtype=np.int32)), *NO_ENDING)

    @classmethod
    def from_tree(cls, tree: SearchTree, config: SearchConfig) -> TreeBuilder:
        """A builder that goes on where a finished tree stopped."""
        builder = cls(tree.problem_id, tree.policy_id, tree.prompt_token_ids, seed=tree.seed, config=config)
        for node in range(1, tree.num_nodes):
            surprisal = float(tree.surprisals[node]) if len(tree.surprisals) else NO_SURPRISAL
            step = Step(tree.steps[node], tree.token_ids[node], surprisal)
            ending = (int(tree.outcomes[node]), int(tree.cutoffs[node]), tree.end_token_id(node))
            builder._add(int(tree.parents[node]), step, *ending)
        builder._visits = tree.visits.tolist()
        builder._counts = tree.visits.tolist()
        builder._value_sums = tree.value_sums.tolist()
        builder._refresh(range(tree.num_nodes))
        builder.tokens_generated = tree.tokens_generated
        builder.tokens_kept = tree.tokens_kept
        builder.num_timeouts = tree.num_timeouts
        for cutoff, number in enumerate(tree.ignored):
            builder._ignored[cutoff] = number
        return builder

    @property
    def num_rollouts(self) -> int:
        return self._visits[ROOT]

    @property
    def num_simulations(self) -> int:
        """Simulations that are done: rollouts backed up, and rollouts ignored."""
        return self.num_rollouts + sum(self._ignored)

    @property
    def is_unanimous(self) -> bool:
        """True when all rollouts backed up earned the same, rounding aside: all right, all wrong; False without any."""
        means = [total / visits for total, visits in zip(self._value_sums, self._visits, strict=True) if visits]
        return bool(means) and (means[ROOT] in (0.0, 1.0) or max(means) - min(means) <= 1e-9)

    def depth(self, node: int) -> int:
        """Steps on the path to `node`."""
        return self._depths[node]

    def path_tokens(self, node: int) -> int:
        """Tokens on the path to `node`, prompt left out."""
        return self._path_tokens[node]

    def prefix_token_ids(self, node: int) -> Int32Array:
        """`[T]` int32: the prompt and every step down to `node`."""
        return np.concatenate([self.prompt_token_ids, *(self._steps[n].token_ids for n in self._path(node))])

    def prefix_text(self, node: int) -> str:
        """The text of every step down to `node`."""
        return "".join(self._steps[n].text for n in self._path(node))

    def select(self) -> int:
        """The node that the next simulation starts at; it counts as in flight until `insert`, or `ignore`.

        With ``selection="ucb"`` it descends from the root by UCB1 to the first node with fewer than `num_candidates`
        counts; else it is one of all nodes with fewer, once the root has as many: with ``frontier`` the best, with
        ``entropy`` the one before the steps that the policy was least certain of.
        When everything below the root is exhausted it is the root: a fresh rollout may still find
        another way.
        """
        find = {"ucb": self._descend, "frontier": self._best_of_frontier, "entropy": self._before_least_certain}
        node = find[self._config.selection]()
        path = [ROOT, *self._path(node)]
        for n in path:
            self._counts[n] += 1
        self._refresh(path)
        return node

    def insert(
        self,
        node: int,
        steps: Sequence[Step],
        outcome: Outcome,
        reward: float,
        *,
        cutoff: Cutoff = Cutoff.NONE,
        end_token_id: int | None = None,
    ) -> None:
        """Expands `node` by the chain of `steps` and backs up one visit and `reward` along the whole path.

        Args:
            node: as returned by `select`, once for each of its calls.
            steps: what was sampled from `node` on; when empty, only the visit counts.
            outcome: how the last step ended; the others stay OPEN.
            reward: in [0, 1].
            cutoff: the limit that cut the last step, or the answer after it, off.
            end_token_id: the token that ended the last step, or `STOPPED`; None where none did or it is not known.
        """
        path = [ROOT, *self._path(node)]
        for position, step in enumerate(steps, start=1):
            ending = (int(outcome), int(cutoff), end_token_id) if position == len(steps) else NO_ENDING
            node = self._find_or_add(node, step, *ending)
            self._counts[node] += 1
            path.append(node)
        for n in path:
            self._visits[n] += 1
            self._value_sums[n] += reward
        self._refresh(path)
        self.tokens_kept += sum(step.num_tokens for step in steps)

    def insert_rollout(self, node: int, rollout: Rollout) -> None:
        """Inserts a rollout drawn at `node` and backs its reward up, or ignores it; counts its tokens either way."""
        if rollout.is_ignored:
            self.ignore(node, rollout.cutoff)
        else:
            self.insert(
                node,
                rollout.steps,
                rollout.outcome,
                rollout.reward,
                cutoff=rollout.cutoff,
                end_token_id=rollout.end_token_id,
            )
        self.tokens_generated += rollout.num_tokens
        self.num_timeouts += rollout.timed_out

    def ignore(self, node: int, cutoff: Cutoff) -> None:
        """Takes the simulation in flight at `node` back: no visit, no reward, no step; only that it was is counted."""
        path = [ROOT, *self._path(node)]
        for n in path:
            self._counts[n] -= 1
        self._refresh(path)
        self._ignored[cutoff] += 1

    def build(self) -> SearchTree:
        """The tree as it stands, without what is in flight."""
        surprisals = np.array([step.surprisal for step in self._steps], dtype=np.float32)
        return SearchTree(
            problem_id=self.problem_id,
            policy_id=self.policy_id,
            seed=self.seed,
            prompt_token_ids=self.prompt_token_ids,
            parents=np.array(self._parents, dtype=np.int32),
            steps=tuple(step.text for step in self._steps),
            token_ids=tuple(step.token_ids for step in self._steps),
            visits=np.array(self._visits, dtype=np.int32),
            value_sums=np.array(self._value_sums, dtype=np.float64),
            outcomes=np.array(self._outcomes, dtype=np.int8),
            depths=np.array(self._depths, dtype=np.int32),
            tokens_generated=self.tokens_generated,
            tokens_kept=self.tokens_kept,
            num_timeouts=self.num_timeouts,
            end_token_ids=np.array(self._end_token_ids, dtype=np.int32),
            cutoffs=np.array(self._cutoffs, dtype=np.int8),
            ignored=tuple(self._ignored) if any(self._ignored) else (),
            surprisals=surprisals if (surprisals >= 0).any() else surprisals[:0],
        )

    def _descend(self) -> int:
        node = ROOT
        while self._counts[node] >= self._config.num_candidates:
            children = [child for child in self._children[node] if not self._is_exhausted[child]]
            if not children:
                break
            node = children[self._select_child(node, children)] if len(children) > 1 else children[0]
        return node

    def _frontier(self) -> list[int]:
        """Where rollouts may start but for the root, in order of insertion; nowhere until the root has its own."""
        few = self._config.num_candidates
        nodes = range(1, len(self._parents)) if self._counts[ROOT] >= few else ()
        return [node for node in nodes if self._counts[node] < few and not self._is_closed[node]]

    def _best_of_frontier(self) -> int:
        frontier = self._frontier()
        if not frontier:
            return ROOT
        parents = [self._parents[node] for node in frontier]
        scores = frontier_scores(
            np.array([self._value_sums[parent] for parent in parents]),
            np.array([self._counts[parent] for parent in parents], dtype=np.int32),
            np.array([self._depths[node] for node in frontier], dtype=np.int32),
        )
        return frontier[int(scores.argmax())]

    def _before_least_certain(self) -> int:
        surprisals = {node: self._surprisals_after(node) for node in self._frontier()}
        known = [node for node, of_children in surprisals.items() if of_children]
        return known[int(entropy_scores([surprisals[node] for node in known]).argmax())] if known else ROOT

    def _surprisals_after(self, node: int) -> list[float]:
        """Of the children of `node`, as far as they are known."""
        steps = (self._steps[child] for child in self._children[node])
        return [step.surprisal for step in steps if step.surprisal != NO_SURPRISAL]

    def _select_child(self, node: int, children: list[int]) -> int:
        value_sums = np.array([self._value_sums[child] for child in children])
        visits = np.array([self._counts[child] for child in children], dtype=np.int32)
        return select(value_sums, visits, self._counts[node], c_uct=self._config.c_uct)

    def _path(self, node: int) -> list[int]:
        path = []
        while node != ROOT:
            path.append(node)
            node = self._parents[node]
        return path[::-1]

    def _find_or_add(self, parent: int, step: Step, outcome: int, cutoff: int, end_token_id: int | None) -> int:
        found = self._index.get((parent, step.text.strip(), outcome, _is_cut(outcome, cutoff)))
        return self._add(parent, step, outcome, cutoff, end_token_id) if found is None else found

    def _add(self, parent: int, step: Step, outcome: int, cutoff: int, end_token_id: int | None) -> int:
        node = len(self._parents)
        if parent != NO_PARENT:
            self._children[parent].append(node)
            self._index[parent, step.text.strip(), outcome, _is_cut(outcome, cutoff)] = node
        self._parents.append(parent)
        self._steps.append(step)
        self._visits.append(0)
        self._value_sums.append(0.0)
        self._outcomes.append(outcome)
        self._end_token_ids.append(NO_TOKEN if end_token_id is None else end_token_id)
        self._cutoffs.append(cutoff)
        self._depths.append(0 if parent == NO_PARENT else self._depths[parent] + 1)
        self._counts.append(0)
        self._path_tokens.append(step.num_tokens + (0 if parent == NO_PARENT else self._path_tokens[parent]))
        self._is_closed.append(self._ends_here(node))
        self._is_exhausted.append(False)
        self._children.append([])
        return node

    def _refresh(self, path: Sequence[int]) -> None:
        """Brings `_is_exhausted` up to date; `path` holds every node that changed, parents first."""
        for node in reversed(path):
            self._is_exhausted[node] = self._is_closed[node] or (
                self._counts[node] >= self._config.num_candidates
                and all(self._is_exhausted[child] for child in self._children[node])
            )

    def _ends_here(self, node: int) -> bool:
        """True when nothing may be drawn at `node` itself.

        Merged steps can differ in tokens, so a path may be at the token limit and yet be OPEN.
        """
        return (
            self._outcomes[node] != OPEN
            or self._path_tokens[node] >= self._config.max_new_tokens
            or self._depths[node] >= self._config.max_depth
        )


def _is_cut(outcome: int, cutoff: int) -> bool:
    """Whether a limit ended the rollouts here; trees of version 0.1.0 say so by their outcome alone."""
    return cutoff != Cutoff.NONE or outcome == Outcome.TRUNCATED
