"""Presets: typed functions that return a whole configuration.

They change on another schedule than the science: every number that differs from the default has
its reason here, and what was tried and did not rise is written in CHANGELOG.md.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline_lib.config import (
    EvaluationConfig,
    PipelineConfig,
    PolicyConfig,
    ProblemsConfig,
    SearchConfig,
    TrainConfig,
)


def tiny() -> PipelineConfig:
    """The embedded default: the committed base, ``tiny-word``, minutes on two CPU cores."""
    return PipelineConfig(
        preset="tiny",
        num_iterations=3,
        problems=ProblemsConfig(dataset="tiny-word", num_problems=400, num_validation=200),
        policy=PolicyConfig(model="tiny", max_batch=128, max_context_tokens=1024),
        search=SearchConfig(num_simulations=16, num_candidates=4, max_new_tokens=128, num_shards=2),
        train=TrainConfig(learning_rate=1e-3, num_epochs=2, tokens_per_update=4096, tokens_per_microbatch=1024),
        evaluation=EvaluationConfig(num_problems=500, max_new_tokens=128),
    )


PRESETS: dict[str, Callable[[], PipelineConfig]] = {"tiny": tiny}


def preset_names() -> list[str]:
    """Names that ``--preset`` knows."""
    return list(PRESETS)


def preset(name: str) -> PipelineConfig:
    """The configuration of a preset; a KeyError for a name not in `preset_names`."""
    return PRESETS[name]()
