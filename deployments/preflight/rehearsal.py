"""One problem through every stage, with the very model of the run, and how fast this machine is at it.

A stage that would fail after hours of search fails here within a minute or two: speed is that of the beginnings of
answers where whole ones would take longer. New questions are timed apart: behind worked examples, short answers cost as
much by their prompts as by their tokens. Where chance gives no signal, as with a model that is always right or always
wrong, the rollouts are graded in turns, so that training is tried all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline_lib.config import ConfigError, EvaluationConfig, PipelineConfig, TrainConfig
from pipeline_lib.config.truncation import dial_to_raise
from pipeline_lib.evaluation import evaluate
from pipeline_lib.grading.grader import Grader
from pipeline_lib.policy.model_folders import model_folder
from pipeline_lib.policy.protocol import Codec, Policy, SampleRequest
from pipeline_lib.policy.redraw import draw_all
from pipeline_lib.score import score_tree
from pipeline_lib.score.score_audit import audit_scores, count_cut_rollouts
from pipeline_lib.search import sampling_params, search_trees, write_trees_parquet
from pipeline_lib.seeding import derive_seed
from pipeline_lib.training.batches.examples import build_examples
from pipeline_lib.training.batches.grafting import MIN_SHARED, num_alike
from pipeline_lib.types import Grade, Outcome, PolicyRef, Problem, SearchTree
from tasks.runtime.engines import engines, open_policy
from tasks.runtime.graders import extractor, open_grader
from tasks.runtime.policies import base_policy
from tasks.runtime.progress import Progress
from tasks.runtime.prompts import search_prompts

MAX_SIMULATIONS = 8
FIRST_TOKENS = 8  # of each answer, to find out how long more of them take
SECONDS_OF_SAMPLING = 15.0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What one problem cost.

    Args:
        sampled_per_s: tokens per second of a full engine, all answers to one question.
        seconds_per_prompt: what an answer to a new question takes beside its tokens, in a full engine.
        tokens_per_answer: mean length of an independent answer, in tokens.
        tokens_per_rollout: tokens that the search drew for a rollout, on average.
        trained_per_s: packed tokens per second, forward and backward.
        trained_tokens: packed tokens that a tree like the problem's adds to a training.
        tree_bytes: size of the tree on disk.
        policy_bytes: size of the adapter or model that training writes.
        outcomes: rollouts by outcome, as ``3 correct, 13 wrong``.
        graded_in_turns: whether chance gave no signal, so that training was tried on invented grades.
    """

    sampled_per_s: float
    seconds_per_prompt: float
    tokens_per_answer: float
    tokens_per_rollout: float
    trained_per_s: float
    trained_tokens: float
    tree_bytes: int
    policy_bytes: int
    outcomes: str
    graded_in_turns: bool


class AlternatingGrader(Grader):
    """Calls every other answer right, whatever it says."""

    def __init__(self) -> None:
        self._count = 0
        self._finished: list[tuple[str, Grade]] = []

    @property
    def num_in_flight(self) -> int:
        return len(self._finished)

    def submit(self, key: str, prediction: str, gold: str) -> None:
        self._count += 1
        self._finished.append((key, Grade.CORRECT if self._count % 2 else Grade.WRONG))

    def poll(self, *, block: bool) -> list[tuple[str, Grade]]:
        finished, self._finished = self._finished, []
        return finished


def rehearse(config: PipelineConfig, problem: Problem, others: Sequence[Problem], folder: Path) -> Rehearsal:
    """Samples, searches, scores, audits, trains, loads what was trained, and answers with it.

    Args:
        config: what the run will use.
        problem: the one that goes through.
        others: at least one; they are asked to see how fast that goes, in turn where the engine holds more.
        folder: empty; gets what training writes.

    Raises:
        ConfigError: the model cannot be trained on packed trees, or no rollout has an answer that can be graded.
    """
    with _phase("what training needs"):
        _check_training(config)
    base = base_policy(config)
    with _closing_engines(), open_grader(config, problem.dataset) as grader:
        with _phase("opening the engine"):
            engine = open_policy(config, base, [problem])
        with _phase("sampling speed"):
            speed = _speed(engine, problem, others, config)
        with _phase("search"):
            tree = _search(config, problem, engine, grader)
            informative = tree if tree.is_informative else _search(config, problem, engine, AlternatingGrader())
        if not informative.is_informative:
            raise ConfigError(
                f"none of {tree.num_simulations} rollouts has an answer that can be graded ({_outcomes(tree)}): raise "
                f"{dial_to_raise(count_cut_rollouts([tree]))}, or take a model that follows the instruction"
            )
        num_shared = _num_shared(engine.codec, problem, others)
        with _phase("training"):
            packed_tokens, seconds = _train(config, informative, folder)
        trained = base.model_copy(update={"policy_id": "rehearsal", "adapter_uri": str(folder / "policy")})
        with _phase("an answer of what was trained"):
            _evaluate(config, problem, trained, grader)
    write_trees_parquet([tree], folder / "trees.parquet")
    return Rehearsal(
        sampled_per_s=speed.tokens_per_s,
        seconds_per_prompt=speed.seconds_per_prompt,
        tokens_per_answer=speed.tokens_per_answer or _mean_path_tokens(tree),
        tokens_per_rollout=tree.tokens_generated / tree.num_simulations,
        trained_per_s=packed_tokens / seconds,
        trained_tokens=tokens_added(packed_tokens, num_shared, config.train),
        tree_bytes=(folder / "trees.parquet").stat().st_size,
        policy_bytes=sum(file.stat().st_size for file in (folder / "policy").rglob("*") if file.is_file()),
        outcomes=_outcomes(tree),
        graded_in_turns=informative is not tree,
    )


def _check_training(config: PipelineConfig) -> None:
    """Opens the policy to be trained, and closes it again: what training refuses is known before a token is sampled."""
    from pipeline_lib.training.open_policy import load_policy

    device = {"device": "cpu"} if config.train.shard_weights else {}  # whole it may not fit a GPU
    model_dir = model_folder(config.policy.model, config.policy.revision)
    load_policy(model_dir, None, config.train, config.policy.model_copy(update=device), seed=config.seed)


@contextmanager
def _phase(name: str) -> Iterator[None]:
    """Tells who looks on what the block is about, and how long it took."""
    progress = Progress(f"one problem: {name}", total=1)
    yield
    progress.advance()


@contextmanager
def _closing_engines() -> Iterator[None]:
    """Closes at the block's end whatever engine was opened in it."""
    try:
        yield
    finally:
        engines.close()


class _Speed(NamedTuple):
    """See `Rehearsal`; the mean length of an answer is None where answers were not let end."""

    tokens_per_s: float
    seconds_per_prompt: float
    tokens_per_answer: float | None


def _speed(engine: Policy, problem: Problem, others: Sequence[Problem], config: PipelineConfig) -> _Speed:
    """How fast a full engine is with one question, and what new ones cost: the first tokens, then longer answers."""
    longest, capacity = config.search.max_new_tokens, engine.capacity
    num_tokens, seconds = _sample(engine, [problem], config, min(longest, FIRST_TOKENS))
    tokens_per_s = num_tokens / seconds
    length = min(longest, max(int(SECONDS_OF_SAMPLING * tokens_per_s / capacity), FIRST_TOKENS))
    num_tokens, seconds = _sample(engine, others, config, length)
    beside = max(0.0, seconds - num_tokens / tokens_per_s)
    return _Speed(tokens_per_s, beside / capacity, num_tokens / capacity if length == longest else None)


def _sample(engine: Policy, problems: Sequence[Problem], config: PipelineConfig, longest: int) -> tuple[int, float]:
    """Tokens of a full engine's answers of at most `longest` tokens each, and the seconds that they took."""
    params = sampling_params(config.search, longest)
    prompts = [engine.codec.encode_prompt(problem.question) for problem in problems[: engine.capacity]]
    started = time.perf_counter()
    requests = [
        SampleRequest(f"answer-{i}", prompts[i % len(prompts)], params, derive_seed(config.seed, "rehearsal", i))
        for i in range(engine.capacity)
    ]
    answers = draw_all(engine, requests, max_failed_share=config.policy.max_failed_share)
    num_tokens = sum(len(answer.token_ids) + answer.num_beyond for answer in answers.values())
    return num_tokens, time.perf_counter() - started


def _search(config: PipelineConfig, problem: Problem, engine: Policy, grader: Grader) -> SearchTree:
    """The problem's tree, of fewer simulations than the run's where those are many."""
    trees: list[SearchTree] = []
    num_simulations = min(config.search.num_simulations, MAX_SIMULATIONS)
    search_trees(
        [problem],
        engine,
        grader,
        config.search.model_copy(update={"num_simulations": num_simulations, "stop_after_equal": None}),
        seed=derive_seed(config.seed, "rehearsal"),
        on_tree=trees.append,
        truncated=config.truncated,
        prompts=search_prompts(config, problem.dataset),
        max_failed_share=config.policy.max_failed_share,
    )
    return trees[0]


def _mean_path_tokens(tree: SearchTree) -> float:
    """Tokens from the question to the end of a rollout, on average over rollouts."""
    tokens = np.array([len(ids) for ids in tree.token_ids])
    return float((tokens * tree.visits).sum() / tree.num_rollouts)


def _train(config: PipelineConfig, tree: SearchTree, folder: Path) -> tuple[float, float]:
    """Packed tokens of one epoch over the tree, and the seconds that they took."""
    from pipeline_lib.policy.tokenizers import load_tokenizer
    from pipeline_lib.training.loop import train

    scores = [score_tree(tree, config.score)]
    audit_scores([tree], scores, config.audit)
    engines.free_for_training()
    started = time.perf_counter()
    times = [started]
    model_dir = model_folder(config.policy.model, config.policy.revision)
    result = train(
        build_examples([tree], scores, config.train),
        model_dir=model_dir,
        previous_adapter=None,
        output_dir=folder / "policy",
        checkpoint_dir=folder / "checkpoint",
        config=config.train.model_copy(update={"num_epochs": 2}),  # the first one warms up
        policy=config.policy,
        seed=config.seed,
        on_update=lambda _: times.append(time.perf_counter()),
    )
    if config.train.full_finetuning:
        load_tokenizer(model_dir, config.policy).save_pretrained(folder / "policy")
    half = len(result.history) // 2
    tokens = sum(update["num_tokens"] for update in result.history[half:])
    return tokens, times[-1] - times[half]


def _num_shared(codec: Codec, problem: Problem, others: Sequence[Problem]) -> int:
    """Tokens with which prompts of different questions begin alike."""
    different = [other for other in others if other.question != problem.question]
    if not different:
        return 0
    return num_alike(codec.encode_prompt(problem.question), codec.encode_prompt(different[0].question))


def tokens_added(num_tokens: float, num_shared: int, config: TrainConfig) -> float:
    """Packed tokens that one of many like trees adds to a training: what they share is computed once a forward pass.

    Args:
        num_tokens: of the packed tree.
        num_shared: of these, with which all trees begin.
        config: how much fits a forward pass and an update.

    Example: 380 tokens of which 300 are shared, 1,500 a pass and 3,040 an update, so 8 trees: 80 + 300 / 8 = 117.5.
    """
    if num_shared < MIN_SHARED:
        return num_tokens
    own = num_tokens - num_shared
    fitting = min((config.tokens_per_microbatch - num_shared) // own, config.tokens_per_update // num_tokens)
    return own + num_shared / max(1.0, fitting)


def _evaluate(config: PipelineConfig, problem: Problem, trained: PolicyRef, grader: Grader) -> None:
    """Loads the trained policy and answers the problem with it."""
    evaluate(
        [problem],
        open_policy(config, trained, [problem]),
        grader,
        split="validation",
        config=EvaluationConfig(num_problems=1, max_new_tokens=config.evaluation.max_new_tokens),
        seed=config.seed,
        extract=extractor(config, problem.dataset),
        max_failed_share=config.policy.max_failed_share,
    )


def _outcomes(tree: SearchTree) -> str:
    """How many rollouts ended in which way, as ``3 correct, 13 wrong``."""
    counts = {outcome.name.lower(): int(tree.visits[tree.outcomes == outcome].sum()) for outcome in Outcome}
    counts["ignored"] = sum(tree.ignored)
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count and name != "open")
