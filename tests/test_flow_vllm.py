"""A whole run whose policy vLLM samples, against one on the embedded backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_fixtures import client, small_config
from statsmodels.stats.proportion import confint_proportions_2indep
from vllm_fixtures import NEEDS_VLLM

from flows.self_training import self_training
from pipeline_lib.types import RunResult
from tasks.runtime.engines import engines

pytestmark = [
    *NEEDS_VLLM,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]


@pytest.fixture
def run_with(prefect_api: str, new_home: Callable[[], Path]) -> Iterator[Callable[[str], tuple[RunResult, Path]]]:
    """Runs an iteration of the tiny preset with a backend, in a home of its own."""

    def run(backend: str) -> tuple[RunResult, Path]:
        home = new_home()
        sizes = ("problems.num_problems=80", "evaluation.num_problems=60", "evaluation.num_samples=0")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COPPICE_HOME", str(home))
            result = self_training(small_config(f"policy.backend={backend}", "policy.device=cpu", *sizes))
            engines.close()
        return result, home

    yield run
    engines.close()


def agree(one: float, other: float, count: int) -> bool:
    """Whether 0 lies in the 95 % interval of the difference of two shares of `count`."""
    lower, upper = confint_proportions_2indep(round(one * count), count, round(other * count), count, method="newcomb")
    return bool(lower <= 0 <= upper)


def test_an_iteration_through_vllm_is_as_one_through_the_embedded_backend(
    run_with: Callable[[str], tuple[RunResult, Path]],
) -> None:
    (vllm, home), (embedded, _) = run_with("vllm"), run_with("transformers")
    before, after = ([result.records[index] for result in (vllm, embedded)] for index in (0, 1))
    assert [e.accuracy for e in before[0].evaluations] == [e.accuracy for e in before[1].evaluations]
    audits = [record.audit for record in after if record.audit is not None]
    assert [audit.passed for audit in audits] == [True, True]
    assert agree(audits[0].informative_share, audits[1].informative_share, 80)
    for mine, other in zip(after[0].evaluations, after[1].evaluations, strict=True):
        assert agree(mine.accuracy, other.accuracy, mine.num_problems), mine.dataset
    runs = client(home).search_runs(["1"])
    assert {run.info.status for run in runs} == {"FINISHED"}
