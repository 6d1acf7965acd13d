"""A policy, a grader and problems small enough to work out by hand; shared by the search tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pipeline_lib.config import SearchConfig, Truncated
from pipeline_lib.grading.grader import Grader
from pipeline_lib.policy.protocol import EngineStats, FinishReason, SampleRequest, SampleResult
from pipeline_lib.search import SearchStats, search_trees
from pipeline_lib.search.tree_files import tree_to_dict
from pipeline_lib.seeding import derive_generator
from pipeline_lib.types import Grade, Int32Array, Problem, SearchTree


class LetterCodec:
    """One token per character; the prompt is the question and a line break."""

    def encode_prompt(self, question: str) -> Int32Array:
        return self.encode(question + "?\n")

    def encode(self, text: str) -> Int32Array:
        return np.array([ord(letter) for letter in text], dtype=np.int32)

    def decode(self, token_ids: Int32Array) -> str:
        return "".join(map(chr, token_ids.tolist()))


class UnorderedPolicy:
    """Answers by a script, in an order that `arrival` draws: what must not matter, varied.

    ``script(prefix, seed)`` returns the continuation; one ending in "!" is an engine error when it is asked first, and
    comes without the mark when it is asked again.
    """

    policy_id = "letters"
    batch_invariant = True

    def __init__(self, script: Callable[[str, int], str], *, capacity: int = 7, arrival: int = 0) -> None:
        self.codec = LetterCodec()
        self.capacity = capacity
        self.stats = EngineStats()
        self.requests: list[SampleRequest] = []
        self.most_in_flight = 0
        self._script = script
        self._queue: list[SampleRequest] = []
        self._arrival = np.random.default_rng(arrival)
        self._failed: set[str] = set()

    @property
    def num_in_flight(self) -> int:
        return len(self._queue)

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        self.requests += requests
        self._queue += requests
        self.most_in_flight = max(self.most_in_flight, len(self._queue))

    def poll(self) -> list[SampleResult]:
        active = self._queue[: self.capacity]
        self.stats.slot_steps += len(active)
        self.stats.capacity_steps += self.capacity
        chosen = self._arrival.permutation(len(active))[: int(self._arrival.integers(1, len(active) + 1))]
        done = [active[i] for i in chosen]
        self._queue = [request for request in self._queue if all(request is not d for d in done)]
        return [self._answer(request) for request in done]

    def close(self) -> None:
        pass

    def _answer(self, request: SampleRequest) -> SampleResult:
        text = self._script(self.codec.decode(request.token_ids), request.seed)
        token_ids = self.codec.encode(text.removesuffix("!"))
        if text.endswith("!") and request.request_id not in self._failed:
            self._failed.add(request.request_id)
            return SampleResult(request.request_id, token_ids, FinishReason.ERROR)
        reason = FinishReason.STOP
        if len(token_ids) >= request.params.max_new_tokens:
            token_ids, reason = token_ids[: request.params.max_new_tokens], FinishReason.LENGTH
        drawn = -derive_generator(request.seed, "surprise").random(len(token_ids), dtype=np.float32)
        return SampleResult(request.request_id, token_ids, reason, logprobs=drawn if request.params.logprobs else None)


class LateGrader(Grader):
    """Grades what follows the last "#"; holds grades back at random unless it is waited for."""

    def __init__(self, arrival: int = 0) -> None:
        self._waiting: list[tuple[str, Grade]] = []
        self._arrival = np.random.default_rng(arrival)
        self.predictions: list[str] = []

    @property
    def num_in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, key: str, prediction: str, gold: str) -> None:
        self.predictions.append(prediction)
        _, mark, answer = prediction.rpartition("#")
        verdict = {gold: Grade.CORRECT, "slow": Grade.TIMEOUT}.get(answer.strip(), Grade.WRONG)
        self._waiting.append((key, verdict if mark else Grade.UNPARSED))

    def poll(self, *, block: bool) -> list[tuple[str, Grade]]:
        if not self._waiting:
            return []
        order = self._arrival.permutation(len(self._waiting))
        num_ready = int(self._arrival.integers(1 if block else 0, len(order) + 1))
        ready = [self._waiting[i] for i in order[:num_ready]]
        self._waiting = [self._waiting[i] for i in order[num_ready:]]
        return ready


def make_problems(num_problems: int) -> list[Problem]:
    return [Problem(f"letters/train/{i:05d}", f"q{i}", "1", "letters") for i in range(num_problems)]


def babble(prefix: str, seed: int) -> str:
    """Lines of few letters, right about half the time; now and then endless, empty, slow or broken at first."""
    rng = derive_generator(seed)
    kind = rng.random()
    if kind < 0.06:
        return ["", "!", "ab\nc!", "\n\n"][int(rng.integers(4))]
    if kind < 0.10:
        return "ab\n" * 40
    lines = ["".join(rng.choice(list("ab"), size=rng.integers(1, 3))) + "\n" for _ in range(rng.integers(0, 4))]
    return "".join(lines) + ["#1", "#2", "#1 ", "ab", "#slow"][int(rng.choice(5, p=[0.4, 0.3, 0.1, 0.15, 0.05]))]


def search(
    script: Callable[[str, int], str],
    problems: Sequence[Problem],
    *,
    capacity: int = 7,
    arrival: int = 0,
    seed: int = 0,
    resume: dict[str, SearchTree] | None = None,
    truncated: Truncated = "wrong",
    policy: Any = None,
    **config: object,
) -> tuple[dict[str, SearchTree], SearchStats, UnorderedPolicy]:
    """Trees by problem id, the stats, and the policy with what it was asked; any share of its answers may fail."""
    trees: list[SearchTree] = []
    policy = policy or UnorderedPolicy(script, capacity=capacity, arrival=arrival)
    stats = search_trees(
        problems,
        policy,
        LateGrader(arrival),
        SearchConfig.model_validate(config),
        seed=seed,
        on_tree=trees.append,
        resume=resume or {},
        truncated=truncated,
        max_failed_share=1.0,
    )
    return {tree.problem_id: tree for tree in trees}, stats, policy


def as_dicts(trees: dict[str, SearchTree]) -> list[dict[str, object]]:
    """Everything in the trees, in order of problem ids, ready for ``==``."""
    return [tree_to_dict(trees[problem_id]) for problem_id in sorted(trees)]
