"""A study: which method is worth what, measured at equal budgets with seeds and intervals."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect import flow

from pipeline_lib.study.cell_result import CellResult
from pipeline_lib.study.comparison import choose_tries
from pipeline_lib.study.grid import Cell, StudyConfig
from pipeline_lib.study.study_tables import study_json, study_markdown
from tasks.runtime.artifacts import show_markdown
from tasks.study.cells import cell_result, cells_end_with_it, result_file, run_cell


@flow(name="study", flow_run_name="study-{study.name}", validate_parameters=True)
def run_study(study: StudyConfig, output: Path, so_far: bool = False) -> dict[str, Any]:
    """Runs methods against each other; `output` is the folder of its results, of which none is made twice.

    With `so_far` nothing is run, and what has no result yet is left out of the tables.

    1. Run every try of a method with the first seeds; validation chooses one for each family, no test set is asked.
    2. Run what was chosen with every seed.
    3. Let methods from outside sample as many tokens as the reference did, in the same two steps.
    4. Make the tables.
    """
    with cells_end_with_it():
        trials, results = run_methods(study, output, "run", [], so_far=so_far)
        more_trials, more_results = run_methods(study, output, "grpo", results, so_far=so_far)
    found = study_json(study, [*trials, *more_trials], [*results, *more_results])
    show_markdown(study_markdown(found), key="study", description=study.name)
    return found


def run_methods(
    study: StudyConfig, output: Path, kind: str, earlier: list[CellResult], *, so_far: bool
) -> tuple[list[CellResult], list[CellResult]]:
    """Steps 1 and 2 for one kind of method: results of the tries, and of what was chosen."""
    trials = run_cells(study, output, with_budgets(study, study.trials(kind), earlier), so_far=so_far)
    chosen = study.cells(kind, choose_tries(trials))
    results = run_cells(study, output, with_budgets(study, chosen, earlier), so_far=so_far)
    return trials, results


def run_cells(study: StudyConfig, output: Path, cells: Iterable[Cell], *, so_far: bool) -> list[CellResult]:
    """The results of cells in order, as many at once as the task runner has places; a failure is raised last."""
    if so_far:
        return [cell_result(cell, output) for cell in cells if result_file(cell, output).is_file()]
    listed = list(cells)
    futures = [run_cell.submit(cell, study.name, output) for cell in listed]
    for future in futures:
        future.wait()
    for future in futures:
        future.result()
    return [cell_result(cell, output) for cell in listed]


def with_budgets(study: StudyConfig, cells: Iterable[Cell], earlier: list[CellResult]) -> Iterable[Cell]:
    """Cells; those of methods from outside with the tokens that the reference sampled in an iteration, once it has."""
    for cell in cells:
        if cell.kind == "run":
            yield cell
            continue
        own = (study.reference, cell.family, cell.seed)
        reference = next((result for result in earlier if (result.method, result.family, result.seed) == own), None)
        if reference is None:
            continue
        tokens = reference.last.generated_tokens // max(1, len(reference.policies) - 1)
        yield cell.model_copy(update={"tokens": tokens})
