"""What a report shows besides the records, gathered from the store once a run has ended.

A page about what is gone is better than no page: what cannot be had is named on it, with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import ValidationError

from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.evaluation import Prediction, read_predictions
from pipeline_lib.evaluation.statistics import wilson_interval
from pipeline_lib.gate import calibration_grid, replay
from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.report import Material, render_page
from pipeline_lib.report.answers.by_kind import accuracy_by_kind
from pipeline_lib.report.answers.flips import summarise_flips
from pipeline_lib.report.material import FlipSummary, KindAccuracy, ShownTree, bounded_history
from pipeline_lib.report.tables import tested_datasets
from pipeline_lib.tracking import load_text
from pipeline_lib.tracking.provenance import describe_environment
from pipeline_lib.types import IterationRecord, Problem, RunResult
from tasks.evaluate import PREDICTIONS
from tasks.problems import PROBLEMS
from tasks.reporting.trees import shown_trees
from tasks.runtime.stage import open_store
from tasks.train import load_history

MATERIAL_FILE = "material.json"
LOGGER = logging.getLogger("coppice.report")


def gather_material(records: Sequence[IterationRecord]) -> Material:
    """Curves, trees and flipped answers from the store, and what this process runs on; called at a run's end."""
    missing: list[str] = []
    histories: dict[int, tuple[dict[str, float], ...]] = {}
    trees: list[ShownTree] = []
    flips: list[FlipSummary] = []
    kinds: list[KindAccuracy] = []
    for record in records:
        with _naming_what_is_missing(missing, f"training curves of iteration {record.index}"):
            histories |= {record.index: rows} if (rows := _history(record)) else {}
        with _naming_what_is_missing(missing, f"search trees of iteration {record.index}"):
            trees += shown_trees(record)
    for dataset in tested_datasets(records):
        with _naming_what_is_missing(missing, f"answers to {dataset}, by kind of problem and as they flipped"):
            problems, answers = _test_answers(records, dataset)
            kinds += accuracy_by_kind(dataset, problems, answers, interval=wilson_interval)
            flips += [summarise_flips(dataset, problems, answers)] if len(answers) > 1 else []
    return Material(
        environment=describe_environment(),
        finished_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        histories=histories,
        trees=tuple(trees),
        flips=tuple(flips),
        kinds=tuple(kinds),
        missing=tuple(missing),
    )


def load_material(settings: Settings, result: RunResult) -> Material:
    """What the run left in MLflow for its report; gathered from the store here when it left nothing readable."""
    if result.tracking_run is not None:
        text = load_text(settings, result.tracking_run, MATERIAL_FILE)
        try:
            return Material.model_validate_json(text or "")
        except ValidationError as error:
            LOGGER.warning(f"{MATERIAL_FILE} of run {result.tracking_run} cannot be used: {error.errors()[0]['msg']}")
    unknown = "versions and hardware of the run: it left no material.json in MLflow"
    found = gather_material(result.records)
    return found.model_copy(update={"environment": {}, "finished_at": "", "missing": (*found.missing, unknown)})


def render_report(config: PipelineConfig, result: RunResult, material: Material) -> str:
    """The page, with the run's records judged by the gates around its own."""
    trials = replay(result.records, calibration_grid(config.gate), dataset=config.problems.dataset)
    return render_page(config, result, material, trials)


def _history(record: IterationRecord) -> tuple[dict[str, float], ...]:
    return bounded_history(load_history(record.refs["train"])) if "train" in record.refs else ()


def _test_answers(
    records: Sequence[IterationRecord], dataset: str
) -> tuple[dict[str, Problem], dict[int, list[Prediction]]]:
    """Test problems by id, and the answers to them by evaluated iteration."""
    reports = {record.index: report for record in records if (report := record.evaluation(dataset, "test"))}
    store, first = open_store(), reports[min(reports)]
    if first.problems is None or any(report.predictions is None for report in reports.values()):
        raise ValueError("the record does not say where they are")
    problems = {p.problem_id: p for p in read_problems(store.open(first.problems) / PROBLEMS)}
    answers = {
        index: [p for p in read_predictions(store.open(report.predictions) / PREDICTIONS) if not p.is_ignored]
        for index, report in reports.items()
        if report.predictions is not None
    }
    return problems, answers


@contextmanager
def _naming_what_is_missing(missing: list[str], what: str) -> Iterator[None]:
    """Turns what cannot be read into a line about it: a report must not fail what it reports on."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:  # the store's, Parquet's and our own errors are ValueErrors
        missing.append(f"{what}: {error}")
