"""SIGKILL of everything that a run needs, one after the other: its process, its worker, Prefect's server, MLflow's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from deployed_run import DeployedRun
from run_fixtures import SCRIPTED, mlflow_points, mlflow_runs, of_content, small_config
from server_fixtures import Service, engine_service, mlflow_service, prefect_service, wait_until, worker_service

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]

CONFIG = small_config(*SCRIPTED)
PATIENCE_S = 3
BASE = (
    "draw-problems",
    "draw-test-problems",
    "evaluate-policy",
    "evaluate-policy",
    "record-iteration",
    "decide-gate",
)


class Machine:
    """Servers of its own and a worker, all of which may be killed."""

    def __init__(self, folder: Path) -> None:
        self.prefect, self.api = prefect_service(folder)
        self.mlflow, self.mlflow_uri = mlflow_service(folder, folder / "mlflow.db")
        self.environment = {
            "COPPICE_HOME": str(folder),
            "COPPICE_TEST_FAULTS": str(folder),
            "COPPICE_TRACKING_URI": self.mlflow_uri,
            "COPPICE_TRACKING_PATIENCE_S": str(PATIENCE_S),
        }
        self.engines, self.command = engine_service(self.api, folder, self.environment)
        self.worker = worker_service(self.api, folder, self.environment)

    @property
    def servers(self) -> tuple[Service, ...]:
        return self.prefect, self.mlflow, self.engines


@pytest.fixture
def machine(new_server_home: Callable[[], Path]) -> Iterator[Machine]:
    machine = Machine(new_server_home())
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Service.start, machine.servers))
        machine.worker.start()
        yield machine
    finally:
        for service in (machine.worker, *machine.servers):
            service.stop()


def status_in_mlflow(machine: Machine, run: DeployedRun) -> str:
    return str(mlflow_runs(machine.mlflow_uri, run.id)[""].info.status)


def test_a_run_outlives_a_sigkill_of_everything_it_needs(machine: Machine, scripted_home: Path, tmp_path: Path) -> None:
    run = DeployedRun(machine.api, tmp_path, CONFIG, machine.environment, command=machine.command)

    run.fail(score_steps="wait")
    run.wait_in("score-steps")
    run.kill_process()
    assert run.wait_for_end() == "Crashed"
    wait_until(lambda: status_in_mlflow(machine, run) == "KILLED", "the worker has run the flow's hook")
    run.go_on("score-steps")
    assert run.tried() == Counter(
        [*BASE, "draw-problems", "search-shard", "search-shard", "gather-trees", "score-steps"]
    )

    run.fail(audit_iteration="wait", train_policy="wait")
    run.retry()
    run.wait_in("audit-iteration")
    machine.prefect.kill()
    machine.prefect.start()
    run.go_on("audit-iteration")
    run.wait_in("train-policy")
    assert run.tried() == Counter(["score-steps", "audit-iteration", "train-policy"])

    machine.worker.kill()  # and with it the run's process: as if the machine had gone down
    assert run.state() == "Running"
    run.go_on("train-policy")
    machine.worker.start()
    run.set_crashed()
    run.fail(evaluate_policy="1 wait")
    run.retry()
    run.wait_in("evaluate-policy")
    machine.worker.kill_alone()  # it read what the run's process prints: the next line ends that too
    run.go_on("evaluate-policy")
    assert run.wait_for_end() == "Crashed"
    assert run.tried() == Counter(["train-policy", "evaluate-policy", "evaluate-policy"])

    run.fail(record_iteration="wait")
    machine.worker.start()
    run.retry()
    run.wait_in("record-iteration")
    machine.mlflow.kill()
    run.go_on("record-iteration")
    assert run.wait_for_end() == "Failed"
    assert run.tried() == Counter(["record-iteration", "decide-gate"])
    line = rf"Flow run encountered an exception: TrackingOutage: tracking: {machine.mlflow_uri} does not answer "
    assert re.fullmatch(line + r"\(.*[Rr]efused.*\); start MLflow's server again, then retry: .*", run.message())

    machine.mlflow.start()
    run.retry()
    assert run.wait_for_end() == "Completed"
    assert run.tried() == Counter(["finish-run"])
    assert of_content(tmp_path) == of_content(scripted_home)
    runs = mlflow_runs(machine.mlflow_uri, run.id)
    assert sorted(runs) == ["", "/0", "/1"]
    assert {mlflow_run.info.status for mlflow_run in runs.values()} == {"FINISHED"}
    assert set(mlflow_points(machine.mlflow_uri, runs).values()) == {1}
    assert [name for name, count in run.artifacts().items() if count != 1] == []
