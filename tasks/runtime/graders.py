"""The grader of a run, under the conventions of the dataset that it grades."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from pipeline_lib.config import PipelineConfig
from pipeline_lib.grading import Conventions, GradingError, GradingPool, extract_answer
from pipeline_lib.grading.conventions import DEFAULT
from pipeline_lib.grading.workers.verifier import MATH, verifier_digest
from pipeline_lib.problems.formats import format_of
from tasks.runtime.keys import key_of

_FIRST_CONVENTIONS = ("any_order", "percent", "ignore_units", "rounded", "mixed_numbers", "last_number")


def conventions_of(config: PipelineConfig, dataset: str) -> Conventions:
    """What the user sets first, then what the dataset's format sets, then the defaults."""
    return Conventions.of(config.grading, format_of(dataset).grading)


def as_evaluated(config: PipelineConfig) -> PipelineConfig:
    """The configuration with the grader of evaluations as its own."""
    named = config.evaluation.grader
    return config if named is None else config.model_copy(update={"grader": named})


def open_grader(config: PipelineConfig, dataset: str) -> GradingPool:
    """A pool for the answers to problems of `dataset`; the caller closes it.

    Raises:
        GradingError: the user's grader is another one than when this process first named a result by it.
    """
    if config.grader != MATH and verifier_digest.__wrapped__(config.grader) != verifier_digest(config.grader):
        raise GradingError(f"grader={config.grader}: its source has changed since the run began; run again")
    return GradingPool(conventions=conventions_of(config, dataset), grader=config.grader)


def extractor(config: PipelineConfig, dataset: str) -> Callable[[str], str | None]:
    """What finds the final answer in a text, as `open_grader`'s pool finds it."""
    conventions = conventions_of(config, dataset)
    return partial(extract_answer, last_number=conventions.last_number, cut_thoughts=conventions.cut_thoughts)


def grading_spec(config: PipelineConfig, dataset: str) -> dict[str, Any]:
    """What the grades of answers to problems of `dataset` depend on: with another version they are made again."""
    return {
        "grader": config.grader,
        "conventions": key_of(config.grading),
        "version": format_of(dataset).grading_version,
        **_source_spec(config),
    }


def yardstick_spec(config: PipelineConfig, dataset: str) -> dict[str, Any]:
    """What two policies' grades must share to be compared; what came after version 1 only where it changes a grade."""
    conventions, version = conventions_of(config, dataset), format_of(dataset).grading_version
    before = {name: value for name, value in asdict(conventions).items() if name in _FIRST_CONVENTIONS}
    later = {n: v for n, v in asdict(conventions).items() if n not in before and v != getattr(DEFAULT, n)}
    return {
        "grader": config.grader,
        "conventions": before | later,
        **({"grading_version": version} if version > 1 else {}),
        **_source_spec(config),
    }


def _source_spec(config: PipelineConfig) -> dict[str, str]:
    """The content of the user's own grader, see `verifier_digest`; nothing for Coppice's, which has a version."""
    digest = None if config.grader == MATH else verifier_digest(config.grader)
    return {} if digest is None else {"grader_source": digest}
