"""Retry, as the Prefect UI does it: a failed run of a deployment goes on at the stage that failed.

One idea: one flow run fails in every stage, one after the other, so that each Retry shows both halves: what failed and
what comes after runs, what was finished does not.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deployed_run import DeployedRun
from run_fixtures import SCRIPTED, mlflow_points, mlflow_runs, of_content, small_config
from server_fixtures import engine_service, prefect_service, wait_until, worker_service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]

# What each attempt comes to the end of; the last one is told to fail there.
ATTEMPTS = (
    "draw-problems draw-test-problems evaluate-policy evaluate-policy record-iteration decide-gate "
    "draw-problems search-shard search-shard",
    "search-shard gather-trees score-steps",
    "score-steps audit-iteration",
    "audit-iteration train-policy",
    "train-policy evaluate-policy evaluate-policy",
    "evaluate-policy record-iteration",
    "record-iteration decide-gate finish-run",
)
# What is lost before the last attempt, and made again by it: the trees, the scores, a record in MLflow.
LOST = ("gather-trees", "score-steps", "record-iteration")


@pytest.fixture
def api(new_server_home: Callable[[], Path]) -> Iterator[str]:
    """A server of its own: while many write to its SQLite, Prefect may report an exit after the next Retry."""
    service, address = prefect_service(new_server_home())
    service.start()
    yield address
    service.kill()


@pytest.fixture
def worker(api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A process worker, by its folder, below which lie the results that Prefect keeps, and what it runs."""
    folder = tmp_path_factory.mktemp("worker")
    results = {"PREFECT_LOCAL_STORAGE_PATH": str(folder / "results"), "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true"}
    engines, command = engine_service(api, folder, results)
    service = worker_service(api, folder, results)
    try:
        engines.start()
        service.start()
        yield folder, command
    finally:
        service.stop()
        engines.stop()


def test_each_retry_runs_the_failed_stage_and_the_later_ones(
    api: str, mlflow_uri: str, worker: tuple[Path, str], scripted_home: Path, tmp_path: Path
) -> None:
    folder, command = worker
    tracking = {"COPPICE_TRACKING_URI": mlflow_uri}
    run = DeployedRun(api, tmp_path, small_config(*SCRIPTED), tracking, command=command)
    run.fail(search_shard="1 raise", score_steps="raise", audit_iteration="raise", train_policy="raise")
    run.fail(evaluate_policy="3 raise", record_iteration="1 raise", finish_run="raise")
    parents = set()
    for attempt, stages in enumerate(ATTEMPTS, 1):
        assert run.wait_for_end() == "Failed"
        assert run.tried() == Counter(stages.split())
        assert run.message().endswith(f"RuntimeError: {stages.split()[-1]} was told to fail")
        parent = mlflow_runs(mlflow_uri, run.id)[""]
        # What fails after the result is on record leaves the MLflow run finished, with a note.
        status, note = ("FAILED", "coppice.error") if attempt < len(ATTEMPTS) else ("FINISHED", "coppice.rerun_error")
        assert parent.info.status == status
        assert parent.data.tags[note] == run.message()
        parents.add(parent.info.run_id)
        check_task_runs(run, attempt, ran=len(stages.split()))
        if attempt == len(ATTEMPTS):
            lose(folder, tmp_path, mlflow_uri, run)
        run.retry()
    assert run.wait_for_end() == "Completed"
    assert run.tried() == Counter([*LOST, "finish-run"])
    assert of_content(tmp_path) == of_content(scripted_home)
    runs = mlflow_runs(mlflow_uri, run.id)
    assert sorted(runs) == ["", "/0", "/1"]
    assert {runs[""].info.run_id} == parents
    assert {mlflow_run.info.status for mlflow_run in runs.values()} == {"FINISHED"}
    assert not {"coppice.error", "coppice.rerun_error"} & set(runs[""].data.tags)
    assert set(mlflow_points(mlflow_uri, runs).values()) == {1}
    assert [name for name, count in run.artifacts().items() if count != 1] == []


def check_task_runs(run: DeployedRun, attempt: int, *, ran: int) -> None:
    """The UI shows the same: the last one failed, those before it completed, all others were cached."""

    def states() -> Counter[str]:
        return Counter(state for _, state in run.task_runs(attempt).elements())

    wait_until(lambda: states()["Failed"] == 1 and states()["Completed"] == ran - 1, f"{ran} task runs")
    assert set(states()) <= {"Failed", "Completed", "Cached"}


def lose(worker: Path, home: Path, mlflow_uri: str, run: DeployedRun) -> None:
    """Removes what Prefect kept, two entries of the store, and the base's run in MLflow."""
    from mlflow import MlflowClient

    assert (worker / "results").is_dir()
    shutil.rmtree(worker / "results")
    for stage in LOST[:2]:
        shutil.rmtree(sorted(home.glob(f"store/{stage}/*"))[0])
    MlflowClient(tracking_uri=mlflow_uri).delete_run(mlflow_runs(mlflow_uri, run.id)["/0"].info.run_id)
