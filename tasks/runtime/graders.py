"""The grader of a run, under the conventions of the dataset that it grades."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline_lib.config import PipelineConfig
from pipeline_lib.grading import Conventions, GradingPool, extract_answer
from pipeline_lib.problems.formats import format_of

VERSION = 1
"""Raised with every change of the grader that changes a grade: search and evaluation run again then."""


def conventions_of(config: PipelineConfig, dataset: str) -> Conventions:
    """What the user sets first, then what the dataset's format sets, then the defaults."""
    return Conventions.of(config.grading, format_of(dataset).grading)


def open_grader(config: PipelineConfig, dataset: str) -> GradingPool:
    """A pool for the answers to problems of `dataset`; the caller closes it."""
    return GradingPool(conventions=conventions_of(config, dataset), grader=config.grader)


def extractor(config: PipelineConfig, dataset: str) -> Callable[[str], str | None]:
    """What finds the final answer in a text, as `open_grader`'s pool finds it."""
    return partial(extract_answer, last_number=conventions_of(config, dataset).last_number)


def grading_spec(config: PipelineConfig) -> dict[str, Any]:
    """What grades depend on."""
    return {"grader": config.grader, "conventions": config.grading.model_dump(), "version": VERSION}
