"""Trains by TRL's GRPO on what a run's iterations would ask: an adapter for each iteration's worth of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pipeline_lib.config import ConfigError, PipelineConfig
from pipeline_lib.distribution import missing_module
from pipeline_lib.policy.model_folders import fingerprint, model_folder
from pipeline_lib.policy.protocol import SamplingParams
from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.seeding import derive_seed
from pipeline_lib.store import Entry, read_json, write_json
from pipeline_lib.training.outside.grpo_config import GrpoConfig
from pipeline_lib.types import PolicyRef, Problem, Ref
from tasks.problems import PROBLEMS
from tasks.runtime.engines import engine_spec, engines
from tasks.runtime.graders import grading_spec, open_grader
from tasks.runtime.keys import key_of
from tasks.runtime.progress import Progress
from tasks.runtime.prompts import prompt_codec
from tasks.runtime.stage import Done, open_store, stage

CURVE, SECONDS = "curve.json", "seconds"
SAMPLED = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens")
ADAPTER = ("lora_rank", "lora_alpha", "lora_scaling", "lora_targets")
OF_OTHER_ENGINES = ("backend", "quantization", "max_context_tokens")  # TRL samples here, and prompts fit


def _spec(
    *, config: PipelineConfig, grpo: GrpoConfig, problems: tuple[Ref, ...], policy: PolicyRef, tokens: int
) -> dict[str, Any]:
    dataset = config.problems.dataset
    engine = engine_spec(config, policy, dataset)
    return {
        "grpo": key_of(grpo, without={"rollouts_per_pass"}),
        "tokens": tokens,
        "num_iterations": config.num_iterations,
        "adapter": key_of(config.train, only=ADAPTER),
        "sampling": key_of(config.search, only=SAMPLED),
        "asked": {name: value for name, value in engine.items() if name not in OF_OTHER_ENGINES},
        "policy_id": policy.policy_id,
        **grading_spec(config, dataset),
        "truncated": config.truncated,
        "seed": config.seed,
        "trl": version("trl"),
    }


@stage(_spec, run_name="train grpo")
def train_grpo(
    entry: Entry,
    *,
    config: PipelineConfig,
    grpo: GrpoConfig,
    problems: tuple[Ref, ...],
    policy: PolicyRef,
    tokens: int,
) -> Done:
    """Trains from the base in one go; a killed training begins anew.

    Args:
        entry: filled with ``1/policy/`` and so on, an adapter each, and ``curve.json``, a row per adapter; seconds are
            among what was measured.
        config: prompts, sampling, grader, adapter, seed, and how many adapters.
        grpo: GRPO's own settings.
        problems: the sets that are asked, each problem once.
        policy: the base.
        tokens: to generate for each adapter.
    """
    from pipeline_lib.training.outside.grpo import Asking, TokenBudget
    from pipeline_lib.training.outside.grpo import train_grpo as train

    engines.free_for_training()
    progress = Progress("train grpo", tokens * config.num_iterations)
    progress.count_tokens(lambda: progress.completed)
    codec = prompt_codec(config, config.problems.dataset)
    sampling = SamplingParams(**{name: getattr(config.search, name) for name in SAMPLED})
    with open_grader(config, config.problems.dataset) as grader:
        points = train(
            _each_once(problems),
            asking=Asking(codec, sampling, grader, config.truncated),
            model_dir=model_folder(policy.base_model, policy.revision),
            output_dir=entry.path,
            budget=TokenBudget(tokens, config.num_iterations),
            config=grpo,
            train=config.train,
            policy=config.policy,
            seed=derive_seed(config.seed, "train", 1),  # iteration 1's adapter starts so, too
            on_update=lambda done: progress.reach(min(done, progress.total)),
        )
    rows = [{"iteration": k, **point._asdict()} for k, point in enumerate(points, 1)]
    seconds = [row.pop("seconds") for row in rows]
    write_json(entry.path / CURVE, rows)
    return Done(points[-1].updates, {SECONDS: seconds})


def _each_once(problems: tuple[Ref, ...]) -> list[Problem]:
    store = open_store()
    drawn = [problem for ref in problems for problem in read_problems(store.open(ref) / PROBLEMS)]
    return list({problem.problem_id: problem for problem in drawn}.values())


def load_curve(trained: Ref) -> list[Mapping[str, float]]:
    """A row per adapter: what had been done when it was written, counted from the beginning; see `GrpoPoint`."""
    store = open_store()
    rows: list[dict[str, float]] = read_json(store.open(trained) / CURVE)
    seconds = store.observations(trained)[SECONDS]
    return [{**row, "seconds": at} for row, at in zip(rows, seconds, strict=True)]


def grpo_policies(policy: PolicyRef, trained: Ref) -> list[PolicyRef]:
    """The policies of the adapters that `train_grpo` wrote, in order.

    Args:
        policy: the base.
        trained: what the stage returned.
    """
    folder = open_store().open(trained)
    numbers = range(1, len(load_curve(trained)) + 1)
    return [
        policy.model_copy(
            update={
                "policy_id": fingerprint(folder / str(number) / "policy"),
                "adapter_uri": f"{trained.uri}/{number}",
                "iteration": number,
            }
        )
        for number in numbers
    ]


def check_grpo(config: PipelineConfig) -> None:
    """Raises ConfigError where GRPO cannot be trained here, before anything is measured."""
    if (missing := missing_module("trl")) is not None:
        raise ConfigError(f"baseline: {missing}")
    if config.train.full_finetuning:
        raise ConfigError("train.full_finetuning=true: the baseline trains adapters; leave it out")
    if config.policy.backend == "scripted":
        raise ConfigError("policy.backend=scripted: no model answers there, and GRPO trains one; use transformers")
