"""Whole runs on an engine that fails now and then: the numbers of a run without failures, or a stage that fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from fault_fixtures import BURST, failing
from run_fixtures import SCRIPTED, SMALL, manifests, of_content, small_config

from pipeline_lib.config import PipelineConfig
from pipeline_lib.policy import EngineError
from pipeline_lib.types import RunResult

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]
SEED = 8  # with which there is a failure even at one in a hundred
ANY_SHARE = "policy.max_failed_share=1"


def run_in(
    home: Path,
    config: PipelineConfig,
    share: float,
    *,
    burst: int = 1,
    stages: Sequence[str] = ("tasks.search", "tasks.evaluate"),
) -> RunResult:
    """A whole run: search, scores, audit, training and evaluations; `share` of the answers to `stages` fail."""
    from flows.self_training import self_training
    from tasks import evaluate, search

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        for stage in (search, evaluate):
            faulty = failing(stage.open_policy, share, burst=burst, seed=SEED)
            patch.setattr(stage, "open_policy", faulty if stage.__name__ in stages else stage.open_policy)
        return self_training(config)


def figures(result: RunResult) -> list[tuple[object, ...]]:
    return [(record.policy, record.audit, record.paired, record.evaluations) for record in result.records]


def failures(result: RunResult) -> float:
    counts = [of.get("num_errors", 0.0) for record in result.records for of in (record.search, record.evaluate)]
    return sum(counts)


@pytest.mark.parametrize(("share", "burst"), [(0.01, 1), (0.05, 1), (0.2, 1), (0.05, BURST), (0.2, BURST)])
def test_a_run_with_failures_has_the_results_of_one_without_or_none(
    scripted_home: Path, new_home: Callable[[], Path], share: float, burst: int
) -> None:
    home, config = new_home(), small_config(*SCRIPTED, ANY_SHARE)
    with suppress(EngineError):
        assert failures(run_in(home, config, share, burst=burst)) > 0
    made = of_content(home)
    assert made.items() <= of_content(scripted_home).items()  # what there is of a run whose stage failed is right, too
    run_in(home, config, 0)  # the same run again has nothing to do, or goes on where a stage failed
    assert of_content(home) == of_content(scripted_home)


def test_by_default_a_stage_with_many_failures_fails_and_commits_nothing(new_home: Callable[[], Path]) -> None:
    home, config = new_home(), small_config(*SCRIPTED)
    with pytest.raises(
        EngineError, match=r"^the engine failed to give 6 of at most 64 answers, more than policy\.max_"
    ):
        run_in(home, config, 0.05, stages=("tasks.search",))
    stages = {uri.partition("/")[0] for uri in manifests(home)}
    assert stages == {"draw-problems", "draw-test-problems", "evaluate-policy", "record-iteration", "decide-gate"}


def test_the_tiny_model_with_failures_trains_the_same_policy(new_home: Callable[[], Path], tmp_path: Path) -> None:
    from deployments.command.output.summary import summary_json

    config = small_config(*SMALL, "evaluation.num_samples=0", "evaluation.datasets=tiny-word", ANY_SHARE)
    plain_home, home = new_home(), new_home()
    plain, result = run_in(plain_home, config, 0), run_in(home, config, 0.05, burst=2)
    assert figures(result) == figures(plain)
    assert of_content(home) == of_content(plain_home)
    search = result.records[1].search
    assert search["num_errors"] >= search["num_redrawn"] > 0
    summary = json.loads(json.dumps(summary_json(result, config)))
    assert summary["iterations"][0]["search"]["redrawn"] == search["num_redrawn"]
    assert summary["iterations"][0]["evaluate"]["engine_errors"] == result.records[1].evaluate["num_errors"]
    assert result.tracking_run is not None
    page = (home / "mlartifacts" / result.tracking_run / "artifacts" / "report.html").read_text(encoding="utf-8")
    assert "The engine failed to answer" in page
    assert f"{search['num_redrawn']:.0f} were drawn again, none counts as wrong" in " ".join(page.split())
