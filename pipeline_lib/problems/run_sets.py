"""The sets of one run, which share no question: a test set keeps what it asks, then validation, then training.

One idea: what a run trains on may depend on what it is measured on, never the other way round. Of files and hub sets
every question counts, drawn or not, so a larger ``evaluation.num_problems`` asks nothing that was trained on. Of
generated worlds those count that are drawn: their splits share no question by the way they are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline_lib.config import ConfigError, NamedSet, PipelineConfig
from pipeline_lib.grading import extract_answer
from pipeline_lib.problems.draw import draw_test, hold_out
from pipeline_lib.problems.formats import FORMATS, format_of
from pipeline_lib.problems.pools import ProblemPool
from pipeline_lib.problems.questions import normal_question
from pipeline_lib.problems.rows import ProblemsError
from pipeline_lib.problems.sources import load_problems
from pipeline_lib.problems.splits import find_files
from pipeline_lib.problems.tiny import is_tiny
from pipeline_lib.types import Problem


def check_datasets(config: PipelineConfig) -> None:
    """Raises ConfigError for a dataset that is not known, or a set whose name or file contradicts its dataset."""
    problems = config.problems
    format_of(problems.dataset)
    if problems.validation_path is not None and is_tiny(problems.dataset):
        raise ConfigError(
            f"problems.validation_path={problems.validation_path}: {problems.dataset} is generated, with a validation "
            "split of its own; leave it out"
        )
    for named in config.evaluation.test_sets:
        format_of(named.dataset)
        if named.name != named.dataset and (named.name in FORMATS or is_tiny(named.dataset)):
            why = f"{named.dataset} is generated" if is_tiny(named.dataset) else f"{named.name} is another dataset"
            raise ConfigError(
                f"evaluation.datasets={named.name}:{named.dataset}=…: {why}; choose another name or dataset"
            )


def training_pool(config: PipelineConfig) -> ProblemPool:
    """The train split with its validation split, if it has one: apart from every test set, and from each other.

    Raises:
        ProblemsError: something cannot be read, is to serve twice, or nothing is left.
    """
    check_datasets(config)
    refuse_shared_files(config)
    problems = config.problems
    tested = {
        f"the test set {named.name}": _asked(pool, draw_test(pool, config.evaluation.num_problems))
        for named in config.evaluation.test_sets
        for pool in [_load(config, named.dataset, "test", named.path, named.name)]
    }
    pool = _load(config, problems.dataset, "train", problems.path)
    validation = pool.validation
    if problems.validation_path is not None:
        validation = _load(config, problems.dataset, "validation", problems.validation_path)
    if validation is None:
        return pool.apart_from(tested)
    validation = validation.apart_from(tested)
    pool = pool.with_validation(validation)
    held_out = _asked(validation, hold_out(pool, problems.num_validation, seed=problems.validation_seed))
    return pool.apart_from({**tested, "the validation set": held_out})


def tested_pool(config: PipelineConfig, named: NamedSet) -> ProblemPool:
    """The test split behind one entry of ``evaluation.datasets``.

    Raises:
        ProblemsError: it cannot be read, or is to be trained on too.
    """
    check_datasets(config)
    refuse_shared_files(config)
    return _load(config, named.dataset, "test", named.path, named.name)


def refuse_shared_files(config: PipelineConfig) -> None:
    """Raises ProblemsError where one file, whose name names no split, is to serve as two of train, validation and test.

    It could be split by question; but whoever evaluates later with that file alone would ask what was trained on.
    """
    problems = config.problems
    used: dict[Path, str] = {}
    wanted = [(problems.dataset, "train", problems.path, "training")]
    wanted += [(problems.dataset, "validation", problems.validation_path, "validation")]
    wanted += [(s.dataset, "test", s.path, f"the test set {s.name}") for s in config.evaluation.test_sets]
    for dataset, split, path, purpose in wanted:
        for file in _files_if_there(dataset, split, path):
            first = used.setdefault(file.resolve(), purpose)
            if first != purpose and not first.startswith("the test set"):
                raise ProblemsError(
                    f"{file} is read for {first} and for {purpose}: its questions would be on both sides; split it "
                    f"into files of their own, for example train{file.suffix} and {split}{file.suffix}"
                )


def _files_if_there(dataset: str, split: str, path: str | None) -> Sequence[Path]:
    """What is missing is said by whoever reads it: an evaluation needs no train split."""
    try:
        return [] if path is None else local_files(dataset, split, path)
    except ProblemsError:
        return []


def local_files(dataset: str, split: str, path: str) -> Sequence[Path]:
    """The files that are read; none where a dataset is generated or on the hub."""
    if is_tiny(dataset) or path.startswith("hub:"):
        return []
    return find_files(Path(path).expanduser(), split)


def _load(config: PipelineConfig, dataset: str, split: str, path: str | None, name: str | None = None) -> ProblemPool:
    problems = config.problems
    return load_problems(
        dataset,
        split,
        path=path,
        on_bad_row=problems.on_bad_row,
        extract_gold=extract_answer,
        columns=problems.columns,
        name=name,
    )


def _asked(pool: ProblemPool, drawn: Sequence[Problem]) -> frozenset[str]:
    """The normal questions of a set that others must not have."""
    return frozenset(normal_question(problem.question) for problem in drawn) if pool.is_generated else pool.questions
