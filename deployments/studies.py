"""Studies, by name: which methods are compared, and with which settings each was tried.

Every method gets as many tries as any other, four, and validation chooses among them; a quick study has the first ones.
"""

from __future__ import annotations

from collections.abc import Callable

from deployments.presets import preset
from pipeline_lib.config import ConfigError, PipelineConfig, apply_overrides
from pipeline_lib.study.grid import Method, StudyConfig

FAMILIES = ("tiny-word", "tiny-algebra")
INDEPENDENT = "search.num_candidates=1000"  # every rollout starts at the problem, none in the middle of a tree
INDEPENDENT_TOKENS = {8: 1.24, 16: 1.48}  # by rollouts of a problem: tokens of independent ones over those of a tree's
RATES = ((), ("train.tokens_per_update=2048",), ("train.learning_rate=5e-4",), ("train.learning_rate=2e-3",))
DPO_RATES = ((1e-4, 0.1), (3e-5, 0.1), (3e-4, 0.1), (1e-4, 0.5))
QUICK = (
    "num_iterations=2",
    "problems.num_problems=60",
    "problems.num_validation=100",
    "search.num_simulations=8",
    "evaluation.num_problems=200",
    "evaluation.num_samples=0",
    "train.num_epochs=2",
)
FULL = (
    "num_iterations=3",
    "problems.num_problems=200",
    "problems.num_validation=500",
    "evaluation.num_problems=1500",
)


def tiny(base: PipelineConfig, *, quick: bool) -> StudyConfig:
    """The shipped objective against those that it is compared with, on both generated families."""
    common = ['evaluation.datasets=["tiny-word", "tiny-algebra"]', f"gate.patience={base.num_iterations + 1}"]
    sizes = QUICK if quick else FULL
    base = apply_overrides(base, [*common, *sizes])
    return StudyConfig(
        name="tiny-quick" if quick else "tiny",
        base=base,
        families=FAMILIES[:1] if quick else FAMILIES,
        seeds=(0, 1) if quick else (0, 1, 2),
        methods=tuple(_with_one_try(method) if quick else method for method in (*METHODS, _independent(base))),
        reference="rft",
    )


METHODS = (
    Method(
        name="coppice",
        settings=("train.objective=relative-correctness",),
        tries=(
            (),
            ("train.value_weight=1",),
            ("train.value_weight=1", "train.negative_clip=0.5"),
            ("train.value_weight=1", "train.tokens_per_update=2048"),
        ),
    ),
    Method(name="rft", settings=("train.objective=rft",), tries=RATES),
    Method(
        name="step-dpo",
        settings=("train.objective=step-dpo",),
        tries=tuple((f"train.learning_rate={rate}", f"train.dpo_beta={beta}") for rate, beta in DPO_RATES),
    ),
    Method(
        name="grpo",
        kind="grpo",
        tries=((), ("learning_rate=1e-4",), ("learning_rate=6e-4",), ("problems_per_update=16",)),
    ),
)


def _with_one_try(method: Method) -> Method:
    return method.model_copy(update={"tries": method.tries[:1]})


def _independent(base: PipelineConfig) -> Method:
    """RFT from independent rollouts, on so many fewer problems that it samples as many tokens as a search does."""
    num_problems = round(base.problems.num_problems / INDEPENDENT_TOKENS[base.search.num_simulations])
    return Method(
        name="rft-independent",
        settings=("train.objective=rft", INDEPENDENT, f"problems.num_problems={num_problems}"),
        tries=RATES,
    )


STUDIES: dict[str, Callable[..., StudyConfig]] = {"tiny": tiny}


def study_of(preset_name: str, *, quick: bool) -> StudyConfig:
    """The study of a preset.

    Args:
        preset_name: the preset's.
        quick: smaller, in minutes.

    Raises:
        ConfigError: there is none for that preset.
    """
    if preset_name not in STUDIES:
        raise ConfigError(f"--preset {preset_name}: there is no study of it; there is one of {', '.join(STUDIES)}")
    return STUDIES[preset_name](preset(preset_name), quick=quick)
