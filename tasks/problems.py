"""Problem sets: an iteration's, the validation set, the test sets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.config import PipelineConfig
from pipeline_lib.grading import extract_answer
from pipeline_lib.problems.draw import draw_problems as draw
from pipeline_lib.problems.draw import hold_out
from pipeline_lib.problems.problem_table import write_problems
from pipeline_lib.problems.sources import ProblemPool, load_problems
from pipeline_lib.problems.splits import find_files
from pipeline_lib.problems.tiny import is_tiny
from pipeline_lib.store import Entry, write_json
from pipeline_lib.types import Problem, Ref
from tasks.runtime.stage import Done, stage

PROBLEMS, SKIPPED = "problems.parquet", "skipped.json"
LOGGER = logging.getLogger("coppice.progress")


def _train_spec(*, config: PipelineConfig, iteration: int) -> dict[str, Any]:
    return {
        "problems": config.problems.model_dump(exclude={"path"}),
        "content": _digest(config.problems.dataset, "train", config.problems.path),
        "seed": config.seed,
        "iteration": iteration,
    }


@stage(_train_spec, run_name="problems {iteration}")
def draw_problems(entry: Entry, *, config: PipelineConfig, iteration: int) -> Done:
    """The iteration's training problems; number 0 are the held-out ones."""
    problems = config.problems
    pool = load_problems(
        problems.dataset, "train", path=problems.path, on_bad_row=problems.on_bad_row, extract_gold=extract_answer
    )
    if iteration == 0:
        chosen = hold_out(pool, problems.num_validation, seed=config.seed)
    else:
        chosen = draw(
            pool,
            problems.num_problems,
            num_validation=problems.num_validation,
            seed=config.seed,
            iteration=iteration,
            fresh=problems.fresh_each_iteration,
        )
        if chosen.note:
            LOGGER.warning(chosen.note)
    return _save(entry, pool, chosen)


def _test_spec(*, config: PipelineConfig, dataset: str, path: str | None) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "content": _digest(dataset, "test", path),
        "num_problems": config.evaluation.num_problems,
        "on_bad_row": config.problems.on_bad_row,
    }


@stage(_test_spec, run_name="test problems {dataset}")
def draw_test_problems(entry: Entry, *, config: PipelineConfig, dataset: str, path: str | None) -> Done:
    """The first ``evaluation.num_problems`` of a test split: the same ones in every iteration and run."""
    on_bad_row = config.problems.on_bad_row
    pool = load_problems(dataset, "test", path=path, on_bad_row=on_bad_row, extract_gold=extract_answer)
    return _save(entry, pool, [pool[i] for i in range(min(config.evaluation.num_problems, len(pool)))])


def evaluation_sets(
    config: PipelineConfig, splits: Sequence[str] = ("validation", "test")
) -> Iterator[tuple[str, str, Ref]]:
    """(name, split, problems) of the validation set and of every test set; only those of `splits` are read."""
    if "validation" in splits:
        yield f"{config.problems.dataset} validation", "validation", draw_problems(config=config, iteration=0)
    for name in config.evaluation.datasets if "test" in splits else ():
        dataset, _, path = name.partition("=")
        yield f"{dataset} test", "test", draw_test_problems(config=config, dataset=dataset, path=path or None)


def _save(entry: Entry, pool: ProblemPool, chosen: list[Problem]) -> Done:
    write_problems(chosen, entry.path / PROBLEMS)
    write_json(entry.path / SKIPPED, [bad.reason for bad in pool.skipped])
    if pool.skipped:
        LOGGER.warning(f"{pool.name}: {len(pool.skipped)} rows skipped; the first: {pool.skipped[0].reason}")
    return Done(len(chosen))


def _digest(dataset: str, split: str, path: str | None) -> str | None:
    """SHA-256 over the files that will be read: other rows make another entry, the same ones elsewhere do not."""
    if path is None or path.startswith("hub:") or is_tiny(dataset):
        return path
    digest = hashlib.sha256()
    for file in find_files(Path(path).expanduser(), split):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
