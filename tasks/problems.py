"""Problem sets: an iteration's, the validation set, the test sets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.config import NamedSet, PipelineConfig
from pipeline_lib.problems.draw import draw_problems as draw
from pipeline_lib.problems.draw import draw_test, hold_out, prefer_informative
from pipeline_lib.problems.hub import hub_commit, hub_name
from pipeline_lib.problems.pools import ProblemPool
from pipeline_lib.problems.problem_table import read_problems, write_problems
from pipeline_lib.problems.run_sets import local_files, tested_pool, training_pool
from pipeline_lib.problems.splits import find_validation
from pipeline_lib.problems.tiny import is_tiny, version_of
from pipeline_lib.search import read_roots
from pipeline_lib.search.tree_files import TREES_FILE
from pipeline_lib.store import Entry, read_json, write_json
from pipeline_lib.types import IterationRecord, Problem, Ref
from tasks.runtime.keys import key_of
from tasks.runtime.stage import Done, open_store, stage, stage_refs

Asked = tuple[tuple[Ref, ...], ...]  # for each earlier iteration its problems, then its trees
PROBLEMS, NOTES = "problems.parquet", "notes"
NOTES_OF_0_1_0 = "skipped.json"
"""A file of the entry, there, so in its digest. It is still written, and empty: sets without notes keep that digest."""
READING = 2  # version of how rows become sets; what is generated knows none
LOGGER = logging.getLogger("coppice.progress")


def _train_spec(*, config: PipelineConfig, iteration: int, asked: Asked = ()) -> dict[str, Any]:
    problems = config.problems
    return {
        "problems": key_of(problems, without=("path", "validation_path", "validation_seed", "curriculum")),
        **({"curriculum": problems.curriculum} if asked else {}),
        "content": _digest(problems.dataset, "train", problems.path),
        "seed": problems.validation_seed if iteration == 0 else config.seed,
        "iteration": iteration,
        **_beside(config),
    }


def _beside(config: PipelineConfig) -> dict[str, Any]:
    """What a draw depends on besides the train split; nothing where all is generated: those splits share nothing."""
    problems, tests = config.problems, config.evaluation.test_sets
    others = [
        [s.dataset, config.evaluation.num_problems if is_tiny(s.dataset) else _digest(s.dataset, "test", s.path)]
        for s in tests
        if not (is_tiny(s.dataset) and is_tiny(problems.dataset))
    ]
    apart = {"reading": READING, "apart_from": others} if others else {}
    if is_tiny(problems.dataset):
        return apart
    return {**apart, "reading": READING, "validation": _validation_digest(config), "cut": problems.validation_seed}


@stage(_train_spec, run_name="problems {iteration}")
def draw_problems(entry: Entry, *, config: PipelineConfig, iteration: int, asked: Asked = ()) -> Done:
    """The iteration's training problems; number 0 are the held-out ones.

    Args:
        entry: filled with ``problems.parquet``.
        config: what is drawn from, and how much.
        iteration: which draw.
        asked: what `asked_before` found; the draw looks back at its solve rates.
    """
    problems = config.problems
    pool = training_pool(config)
    if iteration == 0:
        held_out = hold_out(pool, problems.num_validation, seed=problems.validation_seed)
        return _save(entry, pool.validation or pool, held_out)
    chosen = draw(
        pool,
        problems.num_problems,
        num_validation=problems.num_validation,
        validation_seed=problems.validation_seed,
        seed=config.seed,
        iteration=iteration,
        fresh=problems.fresh_each_iteration,
    )
    if asked:
        earlier = [problem for problems_ref, *_ in asked for problem in _problems_of(problems_ref)]
        chosen = prefer_informative(chosen, earlier, _solve_rates(asked))
    if chosen.note:
        LOGGER.warning(chosen.note)
    return _save(entry, pool, chosen, [chosen.note] if asked else [])


def asked_before(config: PipelineConfig, records: Sequence[IterationRecord]) -> Asked:
    """Problems and trees of every earlier iteration, oldest first; none where the draw does not look back."""
    if config.problems.curriculum == "uniform":
        return ()
    return tuple(
        (record.refs["problems"], *stage_refs(record, "search")) for record in records if "problems" in record.refs
    )


def _problems_of(ref: Ref) -> list[Problem]:
    return read_problems(open_store().open(ref) / PROBLEMS)


def _solve_rates(asked: Asked) -> dict[str, float]:
    """Mean reward of each problem's rollouts, from the last iteration that asked it."""
    roots = (root for _, *trees in asked for ref in trees for root in read_roots(open_store().open(ref) / TREES_FILE))
    return {name: total / visits for name, visits, total, _ in roots if visits}


def _test_spec(*, config: PipelineConfig, dataset: str, path: str | None, name: str | None = None) -> dict[str, Any]:
    spec = {
        "dataset": dataset,
        "content": _digest(dataset, "test", path),
        "num_problems": config.evaluation.num_problems,
        "on_bad_row": config.problems.on_bad_row,
    }
    if is_tiny(dataset):
        return spec
    columns = {name: column for name, column in key_of(config.problems.columns).items() if column is not None}
    return spec | {"reading": READING, "name": name or dataset} | ({"columns": columns} if columns else {})


@stage(_test_spec, run_name="test problems {dataset}")
def draw_test_problems(
    entry: Entry, *, config: PipelineConfig, dataset: str, path: str | None, name: str | None = None
) -> Done:
    """``evaluation.num_problems`` of a test split: the same ones in every iteration and run.

    Args:
        entry: filled with ``problems.parquet``.
        config: how many, and how rows are read.
        dataset: whose format they have.
        path: where they are; None takes the dataset's own place.
        name: how reports call the set; None: as the dataset.
    """
    pool = tested_pool(config, NamedSet(name or dataset, dataset, path))
    return _save(entry, pool, draw_test(pool, config.evaluation.num_problems))


def evaluation_sets(
    config: PipelineConfig, splits: Sequence[str] = ("validation", "test")
) -> Iterator[tuple[str, str, Ref]]:
    """(name, split, problems) of the validation set and of every test set; only those of `splits` are read."""
    if "validation" in splits:
        yield f"{config.problems.dataset} validation", "validation", draw_problems(config=config, iteration=0)
    for named in config.evaluation.test_sets if "test" in splits else ():
        problems = draw_test_problems(config=config, dataset=named.dataset, path=named.path, name=named.name)
        yield f"{named.name} test", "test", problems


def notes_of(entry: Entry) -> list[str]:
    """One line for each bad row of the split that a set was drawn from, and for each reason to leave good ones out."""
    observed = entry.observations()
    return list(observed[NOTES] if NOTES in observed else read_json(entry.path / NOTES_OF_0_1_0))


def _save(entry: Entry, pool: ProblemPool, chosen: list[Problem], more_notes: Sequence[str] = ()) -> Done:
    """Notes name places and rows that were not chosen, so they are no part of what tells two sets apart."""
    write_problems(chosen, entry.path / PROBLEMS)
    write_json(entry.path / NOTES_OF_0_1_0, [])
    notes = pool.notes(chosen)
    if pool.skipped:
        LOGGER.warning(f"{pool.name}: {len(pool.skipped)} rows skipped; the first: {pool.skipped[0].reason}")
    for note in notes:
        LOGGER.warning(note)
    return Done(len(chosen), {NOTES: [*(bad.reason for bad in pool.skipped), *notes, *more_notes]})


def _validation_digest(config: PipelineConfig) -> str | None:
    """Of a validation set of the user's own, by name or beside the train split."""
    problems = config.problems
    if problems.validation_path is not None:
        return _digest(problems.dataset, "validation", problems.validation_path)
    if problems.path is None or problems.path.startswith("hub:"):
        return None  # the train split's place says it
    return _digest_of(find_validation(Path(problems.path).expanduser()))


def _digest(dataset: str, split: str, path: str | None) -> str | None:
    """Of the files that are read, or the commit on the hub: other rows make another entry, moved ones do not."""
    if is_tiny(dataset):
        return version_of(dataset)
    if (name := hub_name(dataset, split, path)) is not None:
        return f"{name}@{hub_commit(name)}"
    if path is None:
        return None
    return _digest_of(local_files(dataset, split, path))


def _digest_of(files: Sequence[Path]) -> str:
    """SHA-256 over the files' own."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
