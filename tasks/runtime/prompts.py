"""How a dataset's questions are asked, and whether prompts and answers fit into the context.

The second is what `coppice check` says, and a run before any GPU time.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.policy.model_folders import model_folder
from pipeline_lib.policy.prompting.conversation import Shot
from pipeline_lib.problems.draw import draw_shots, draw_test, hold_out
from pipeline_lib.problems.formats import answer_mark, format_of
from pipeline_lib.problems.pools import ProblemPool
from pipeline_lib.problems.run_sets import tested_pool, training_pool
from pipeline_lib.problems.sources import worked_solutions
from pipeline_lib.problems.tiny import is_tiny
from pipeline_lib.store.files import canonical_json
from pipeline_lib.types import Int32Array, Problem
from tasks.runtime.policies import base_policy

if TYPE_CHECKING:
    from pipeline_lib.policy.codec import TokenizerCodec

MAX_PROMPTS = 20_000  # of a split that was read: the longest by characters; a tokenizer does some 5,000 a second
MAX_GENERATED = 200  # of a generated one, whose prompts are all alike
PASSED = "passed"  # folder of the home: an empty file for each set of prompts that was found to fit

Asked = tuple[Literal["search", "evaluation"], Sequence[Problem]]
"""Problems, and the group of settings that bounds the answers to them."""


@dataclass(frozen=True, slots=True)
class PromptLengths:
    """Prompts in tokens, instruction and template included."""

    num_prompts: int
    mean: float
    longest: int


def instruction_for(config: PipelineConfig, dataset: str) -> str:
    """What is appended to every question of `dataset`: what the user sets, else what a dataset's format does."""
    chosen = config.policy.instruction
    return format_of(_asked_as(config, dataset)).instruction if chosen is None else chosen


def _asked_as(config: PipelineConfig, dataset: str) -> str:
    """The dataset whose format prompts and answers have: beside worked examples that of the examples, for all sets."""
    return config.problems.dataset if config.policy.num_shots else dataset


def codec_for(config: PipelineConfig, tokenizer: Any, dataset: str) -> TokenizerCodec:
    """What makes prompts of a dataset's questions and ends the answers to them."""
    from pipeline_lib.policy.tokenizers import make_codec

    instruction = instruction_for(config, dataset)
    mark = answer_mark(_asked_as(config, dataset), instruction)
    return make_codec(tokenizer, config.policy, instruction, shots=shots_for(config), answer_mark=mark)


def shots_for(config: PipelineConfig) -> tuple[Shot, ...]:
    """The worked examples of every prompt and one in reserve, from the run's train split whatever set is asked.

    Raises:
        ProblemsError: the split cannot be read, or is too small.
    """
    if not config.policy.num_shots:
        return ()
    return _shots(config.model_dump_json(include={"problems", "evaluation", "policy"}))


@lru_cache(maxsize=4)
def _shots(settings: str) -> tuple[Shot, ...]:
    """The same of settings as JSON: a large train split is read once."""
    config = PipelineConfig.model_validate_json(settings)
    problems, dataset = config.problems, config.problems.dataset
    drawn = draw_shots(
        training_pool(config),
        config.policy.num_shots + 1,
        levels=config.policy.shot_levels,
        num_validation=problems.num_validation,
        validation_seed=problems.validation_seed,
    )
    mark = answer_mark(dataset, instruction_for(config, dataset))
    solutions = worked_solutions(drawn, path=problems.path, columns=problems.columns, mark=mark)
    return tuple(Shot(problem.question, solution) for problem, solution in zip(drawn, solutions, strict=True))


def search_prompts(config: PipelineConfig, dataset: str) -> Callable[[str], list[Int32Array]]:
    """The prompts that a question's rollouts are sampled behind in turn; none where the policy's own is."""
    codecs = [prompt_codec(explored, dataset) for explored in explored_as(config)]
    return lambda question: [codec.encode_prompt(question) for codec in codecs]


def explored_spec(config: PipelineConfig) -> dict[str, str]:
    """What those prompts depend on, besides what the policy's own does; nothing where there are none."""
    shots = [shots_for(explored) for explored in explored_as(config)]
    return {"explored": hashlib.sha256(canonical_json(shots).encode()).hexdigest()} if shots else {}


def explored_as(config: PipelineConfig) -> list[PipelineConfig]:
    """The run with each set of `search.shot_levels` as its worked examples."""
    return [
        config.model_copy(
            update={"policy": config.policy.model_copy(update={"num_shots": len(levels), "shot_levels": levels})}
        )
        for levels in config.search.shot_levels
    ]


def prompt_codec(config: PipelineConfig, dataset: str) -> TokenizerCodec:
    """The same of the base's own tokenizer, which is loaded."""
    from pipeline_lib.policy.tokenizers import load_tokenizer

    model = model_folder(config.policy.model, config.policy.revision, weights=False)
    return codec_for(config, load_tokenizer(model, config.policy), dataset)


def check_prompts(config: PipelineConfig, splits: Collection[str] = ("train", "validation", "test")) -> None:
    """Raises ConfigError where a prompt of the run leaves no room for its answer.

    What passed is remembered below the home: a run of which nothing is left to do then loads no tokenizer, half of
    what such a run costs.
    """
    training = training_pool(config) if {"train", "validation"} & set(splits) else None
    tests = [tested_pool(config, named) for named in config.evaluation.test_sets] if "test" in splits else []
    asked = problems_to_ask(config, training, tests)
    asked = asked if "train" in splits or training is None else asked[1:]
    passed = Settings().home.resolve() / PASSED / f"prompts-{_digest(config, asked)}"
    if not passed.is_file():
        measure_prompts(config, asked)
        passed.parent.mkdir(parents=True, exist_ok=True)
    passed.touch()  # at every run: `coppice prune` drops what none of the kept ones has asked for


def _digest(config: PipelineConfig, asked: Sequence[Asked]) -> str:
    """Of all that the lengths of prompts and their limits depend on."""
    policy = config.policy
    limits = (policy.max_context_tokens, config.search.max_new_tokens, config.evaluation.max_new_tokens)
    told: tuple[object, ...] = (
        base_policy(config).policy_id,
        version("transformers"),
        policy.template_date.isoformat(),
    )
    told = (*told, MAX_PROMPTS, policy.system_prompt, policy.chat_template_kwargs, shots_for(config))
    told = (*told, *map(shots_for, explored_as(config)))
    digest = hashlib.sha256(repr((limits, told)).encode())
    for group, problems in asked:
        digest.update(repr((group, instruction_for(config, problems[0].dataset), len(problems))).encode())
        for problem in problems:
            digest.update(problem.question.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()[:32]


def problems_to_ask(config: PipelineConfig, training: ProblemPool | None, tests: Iterable[ProblemPool]) -> list[Asked]:
    """What a run asks of its pools: all that it may train on, first, then what it measures policies on."""
    asked: list[Asked] = []
    if training is not None:
        some = training[:MAX_GENERATED] if training.is_generated else training
        problems = config.problems
        asked.append(("search", some))
        asked.append(("evaluation", hold_out(training, problems.num_validation, seed=problems.validation_seed)))
    return asked + [("evaluation", draw_test(pool, config.evaluation.num_problems)) for pool in tests]


def measure_prompts(config: PipelineConfig, asked: Iterable[Asked]) -> PromptLengths:
    """How long the prompts are.

    Raises:
        ConfigError: one of them and its answer do not fit into the context.
    """
    lengths: list[int] = []
    for group, problems in asked:
        configs = [config, *(explored_as(config) if group == "search" else ())]
        codecs = [prompt_codec(each, problems[0].dataset) for each in configs]
        tried = heapq.nlargest(MAX_PROMPTS, problems, key=lambda problem: len(problem.question))
        own = [max(len(codec.encode_prompt(problem.question)) for codec in codecs) for problem in tried]
        longest = max(own)
        answer_tokens = config.search.max_new_tokens if group == "search" else config.evaluation.max_new_tokens
        if longest + answer_tokens > config.policy.max_context_tokens:
            culprit = tried[own.index(longest)]
            raise ConfigError(
                f"{culprit.problem_id}: a prompt of {longest} tokens and {group}.max_new_tokens="
                f"{answer_tokens} do not fit into policy.max_context_tokens={config.policy.max_context_tokens}; raise "
                f"it to {longest + answer_tokens}{', lower policy.num_shots' if config.policy.num_shots else ''}"
                f"{', or drop the row' if _is_in_file(config, culprit) else ''}"
            )
        lengths += own
    return PromptLengths(len(lengths), sum(lengths) / len(lengths), max(lengths))


def _is_in_file(config: PipelineConfig, problem: Problem) -> bool:
    """Whether the problem was read from the user's own files, where it can be dropped; not from the hub, nor made."""
    if is_tiny(problem.dataset):
        return False
    match problem.problem_id.split("/")[1]:
        case "test":
            path = {named.name: named.path for named in config.evaluation.test_sets}.get(problem.set_name)
        case "validation":
            path = config.problems.validation_path or config.problems.path
        case _:
            path = config.problems.path
    return path is not None and not path.startswith("hub:")
