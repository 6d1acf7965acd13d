"""Studies, by their preset and question: which methods are compared, and with which settings each was tried.

Every method of a study gets as many tries as any other, and validation chooses among them; a quick study has the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from deployments.presets import preset
from pipeline_lib.config import ConfigError, PipelineConfig, apply_overrides
from pipeline_lib.study.grid import Method, StudyConfig

NEVER = 1000  # iterations without a gain
FAMILIES = ("tiny-word", "tiny-algebra")
INDEPENDENT = "search.num_candidates=1000"  # every rollout starts at the problem, none in the middle of a tree
INDEPENDENT_TOKENS = {8: 1.24, 16: 1.48}  # by rollouts of a problem: tokens of independent ones over those of a tree's
RATES = (
    (),
    ("train.tokens_per_update=2048",),
    ("train.learning_rate=5e-4",),
    ("train.learning_rate=2e-3",),
    ("train.learning_rate=5e-4", "train.tokens_per_update=2048"),
)
DPO_RATES = ((1e-4, 0.1), (3e-5, 0.1), (3e-4, 0.1), (1e-4, 0.5), (1e-3, 0.1))
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


SIZES = ("num_iterations", "problems.num_problems")
START = ("train.learning_rate=1e-3", "train.value_weight=0")  # where tries set nothing else; the presets followed later
LITERAL = (  # the paper's literal reading, as the preset tiny-literal has it, each iteration going on from the last
    "score.baseline=others",
    "score.scaling=linear",
    "train.value_weight=0",
    "train.negative_clip=null",
    "train.kl_beta=0.1",
    "gate.continue_from=last",
)


def objectives(base: PipelineConfig, *, quick: bool) -> StudyConfig:
    """The shipped objective against those that it is compared with, on both generated families."""
    base = _sized(base, *START, quick=quick, datasets=FAMILIES)
    return StudyConfig(
        name="tiny-quick" if quick else "tiny",
        question="Which objective learns most from equally many sampled tokens?",
        base=base,
        families=FAMILIES[:1] if quick else FAMILIES,
        seeds=(0, 1) if quick else tuple(range(6)),
        num_trial_seeds=1 if quick else 2,
        methods=_with_tries((*METHODS, _independent(base)), quick=quick),
        reference="rft",
    )


def degradation(base: PipelineConfig, *, quick: bool) -> StudyConfig:
    """Question 1: the literal reading, one cause of its fall switched off in each of the others."""
    return _ablation(
        base,
        quick=quick,
        name="tiny-degradation",
        question="Why do more iterations, or more problems, make a policy worse?",
        iterations=4,
        methods={
            "literal": LITERAL,
            "literal-2x-problems": (*LITERAL, "problems.num_problems=400"),
            "literal-clipped": (*LITERAL, "train.negative_clip=0.1"),
            "literal-positives": (*LITERAL, "train.negative_clip=0"),
            "literal-kl-0.5": (*LITERAL, "train.kl_beta=0.5"),
            "literal-from-best": (*LITERAL, "gate.continue_from=best"),
            "coppice": (),
            "coppice-from-last": ("gate.continue_from=last",),
        },
    )


def endurance(base: PipelineConfig, *, quick: bool) -> StudyConfig:
    """Question 2: eight iterations, and as many problems in more and in fewer of them."""
    return _ablation(
        base,
        quick=quick,
        name="tiny-endurance",
        question="For how many iterations does a policy go on getting better, and are many small ones better?",
        iterations=8,
        methods={
            "literal": LITERAL,
            "coppice": (),
            "rft": ("train.objective=rft",),
            "coppice-16x100": ("num_iterations=16", "problems.num_problems=100"),
            "coppice-2x800": ("num_iterations=2", "problems.num_problems=800"),
        },
    )


def ranks(base: PipelineConfig, *, quick: bool) -> StudyConfig:
    """Question 3: what is trained, each at the best of three rates."""
    kinds = {
        "rank-4": (("train.lora_rank=4", "train.lora_alpha=8"), (1e-3, 5e-4, 2e-3)),
        "rank-16": ((), (1e-3, 5e-4, 2e-3)),
        "rank-64": (("train.lora_rank=64", "train.lora_alpha=128"), (1e-3, 5e-4, 2e-3)),
        "rank-64-rslora": (("train.lora_rank=64", "train.lora_scaling=sqrt_rank"), (1e-3, 5e-4, 2e-3)),
        "all-weights": (("train.full_finetuning=true",), (1e-4, 3e-5, 3e-4)),
    }
    methods = tuple(
        Method(name=name, settings=settings, tries=tuple((f"train.learning_rate={rate}",) for rate in rates))
        for name, (settings, rates) in kinds.items()
    )
    return StudyConfig(
        name="tiny-ranks-quick" if quick else "tiny-ranks",
        question="Adapters of which rank, or all weights, each at its best rate?",
        base=_sized(base, quick=quick, datasets=FAMILIES[:1]),
        families=FAMILIES[:1],
        seeds=(0, 1) if quick else (0, 1, 2),
        methods=_with_tries(methods, quick=quick),
        reference="rank-16",
    )


def verifiers(base: PipelineConfig, *, quick: bool) -> StudyConfig:
    """Where step scores should pay: rollouts are rewarded by a verifier that pays for every second wrong answer."""
    lax = ("grader=pipeline_lib.study.verifiers.remainders:up_to_2", "evaluation.grader=math")
    rates = tuple((f"train.learning_rate={rate}",) for rate in (1e-3, 5e-4, 2.5e-4))
    kinds = {"rft": ("train.objective=rft",), "coppice-scores": ("train.value_weight=0",), "coppice-values": ()}
    methods = tuple(Method(name=name, settings=settings, tries=rates) for name, settings in kinds.items())
    return StudyConfig(
        name="tiny-verifiers-quick" if quick else "tiny-verifiers",
        question="Where the verifier pays for every second wrong answer too, does it help to score steps?",
        base=_sized(base, *lax, quick=quick, datasets=FAMILIES[:1]),
        families=FAMILIES[:1],
        seeds=(0, 1) if quick else tuple(range(6)),
        num_trial_seeds=1 if quick else 2,
        methods=_with_tries(methods, quick=quick),
        reference="rft",
    )


def _ablation(
    base: PipelineConfig, *, quick: bool, name: str, question: str, iterations: int, methods: dict[str, Sequence[str]]
) -> StudyConfig:
    """A study of one family whose methods have one try each; the shipped settings are the reference.

    A quick one leaves out the methods that have a size of their own.
    """
    length = () if quick else (f"num_iterations={iterations}",)
    if quick:
        methods = {each: own for each, own in methods.items() if not any(name.startswith(SIZES) for name in own)}
    return StudyConfig(
        name=f"{name}-quick" if quick else name,
        question=question,
        base=_sized(base, *length, quick=quick, datasets=FAMILIES[:1]),
        families=FAMILIES[:1],
        seeds=(0, 1) if quick else (0, 1, 2),
        methods=tuple(Method(name=each, settings=tuple(settings)) for each, settings in methods.items()),
        reference="coppice",
    )


def _sized(base: PipelineConfig, *settings: str, quick: bool, datasets: Sequence[str]) -> PipelineConfig:
    """The base of a study: its sizes, its test sets, and no early end."""
    named = ", ".join(f'"{name}"' for name in datasets)
    sizes = (*(QUICK if quick else FULL), *settings)
    return apply_overrides(base, [*sizes, f"evaluation.datasets=[{named}]", f"gate.patience={NEVER}"])


METHODS = (
    Method(
        name="coppice",
        settings=("train.objective=relative-correctness",),
        tries=(
            (),
            ("train.value_weight=1",),
            ("train.value_weight=1", "train.negative_clip=0.5"),
            ("train.value_weight=1", "train.tokens_per_update=2048"),
            ("train.value_weight=1", "train.learning_rate=5e-4"),
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
        tries=(
            (),
            ("learning_rate=1e-4",),
            ("learning_rate=6e-4",),
            ("problems_per_update=16",),
            ("rollouts_per_problem=16", "problems_per_update=4"),
        ),
    ),
)


def _with_tries(methods: Sequence[Method], *, quick: bool) -> tuple[Method, ...]:
    return tuple(method.model_copy(update={"tries": method.tries[:1]}) if quick else method for method in methods)


def _independent(base: PipelineConfig) -> Method:
    """RFT from independent rollouts, on so many fewer problems that it samples as many tokens as a search does."""
    num_problems = round(base.problems.num_problems / INDEPENDENT_TOKENS[base.search.num_simulations])
    return Method(
        name="rft-independent",
        settings=("train.objective=rft", INDEPENDENT, f"problems.num_problems={num_problems}"),
        tries=RATES,
    )


class _Study(Protocol):
    def __call__(self, base: PipelineConfig, *, quick: bool) -> StudyConfig: ...


STUDIES: dict[str, dict[str, _Study]] = {
    "tiny": {
        "objectives": objectives,
        "verifiers": verifiers,
        "degradation": degradation,
        "endurance": endurance,
        "ranks": ranks,
    }
}
QUESTIONS = tuple(dict.fromkeys(question for studies in STUDIES.values() for question in studies))


def study_of(preset_name: str, question: str = "objectives", *, quick: bool) -> StudyConfig:
    """The study of a preset.

    Args:
        preset_name: the preset's.
        question: which of its studies.
        quick: smaller, in minutes.

    Raises:
        ConfigError: there is none for that preset, or no such question.
    """
    if preset_name not in STUDIES:
        raise ConfigError(f"--preset {preset_name}: there is no study of it; there is one of {', '.join(STUDIES)}")
    if question not in STUDIES[preset_name]:
        raise ConfigError(f"--question {question}: a study of {preset_name} answers {', '.join(STUDIES[preset_name])}")
    return STUDIES[preset_name][question](preset(preset_name), quick=quick)
