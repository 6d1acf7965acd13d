"""What `coppice serve` does: registers the deployments of prefect.yaml and becomes the worker that runs them.

prefect.yaml says what there is and Prefect's own commands do the work, so that whatever its documentation says of a
deployment is true of these. A process worker, not `flow.serve`: the work pool stands between
schedule and machine, so the same deployments run on other machines by naming another pool.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pipeline_lib.config import ConfigError, PipelineConfig
from pipeline_lib.distribution import installed_version

POOL = "coppice"
PREFECT_FILE = Path(__file__).parents[1] / "prefect.yaml"
CONFIG_VARIABLE = "COPPICE_SERVED_CONFIG"
PREFECT = (sys.executable, "-m", "prefect")


def placeholders(new_schedules: Mapping[str, bool], preset: str = "tiny") -> dict[str, Any]:
    """The values of the placeholders in prefect.yaml; a build step there calls this.

    ``config`` is the preset's whole configuration, or the one that `register_deployments` was given; ``directory`` is
    where relative paths in it start. A schedule's name stands for on or off while the server has no such schedule, and
    for nothing afterwards: it stays as somebody switched it.

    Args:
        new_schedules: from ``flow/deployment/schedule`` to whether it starts switched on.
        preset: name of the preset, where no configuration was given.
    """
    from prefect.client.orchestration import get_client

    from deployments import presets

    given = os.environ.get(CONFIG_VARIABLE)
    config = json.loads(given) if given else presets.preset(preset).model_dump(mode="json")
    with get_client(sync_client=True) as client:
        new = {name: on for name, on in new_schedules.items() if not _has_schedule(client, name)}
    return {
        "config": config,
        "directory": str(Path.cwd()),
        "version": installed_version() or "not installed",
        **{name.rpartition("/")[2]: on for name, on in new.items()},
    }


def require_server(command: str) -> None:
    """Raises ConfigError unless a Prefect server is named; one that Prefect starts by itself ends with the command."""
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise ConfigError(f"{command}: no Prefect server is named; `make up` starts one, or set PREFECT_API_URL")


def register_deployments(config: PipelineConfig) -> None:
    """Creates or updates the work pool and the deployments of prefect.yaml.

    Args:
        config: what the deployments' forms start from.

    Raises:
        ConfigError: no server is named, or it refused.
    """
    require_server("serve")
    _create_pool()
    deployed = subprocess.run(
        [*PREFECT, "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE)],
        env={**os.environ, CONFIG_VARIABLE: config.model_dump_json()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if deployed.returncode != 0:
        raise ConfigError(f"serve: {PREFECT_FILE.name} was not accepted: {' '.join(deployed.stdout.split())[-600:]}")


def become_worker(name: str | None = None) -> NoReturn:
    """Turns this process into the worker; it takes one run at a time and ends by SIGINT or SIGTERM.

    Args:
        name: the worker's name in the UI; the host's if None. Two workers on one machine need two names.
    """
    worker = [*PREFECT, "worker", "start", "--pool", POOL, "--type", "process", "--limit", "1"]
    os.execv(worker[0], [*worker, "--name", name or socket.gethostname()])


def _create_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


def _has_schedule(client: Any, schedule: str) -> bool:
    from prefect.exceptions import ObjectNotFound

    deployment, _, slug = schedule.rpartition("/")
    try:
        found = client.read_deployment_by_name(deployment).schedules
    except ObjectNotFound:
        return False
    return slug in {item.slug for item in found}
