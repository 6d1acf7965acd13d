"""What `coppice worker` does: registers the deployments of prefect.yaml and becomes the worker that runs them.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from pipeline_lib.config import ConfigError, PipelineConfig, Settings, differing_settings, known_fields
from pipeline_lib.distribution import installed_version
from pipeline_lib.store import read_json, write_json

POOL = "coppice"
PREFECT_FILE = Path(__file__).parents[1] / "prefect.yaml"
CONFIG_VARIABLE = "COPPICE_SERVED_CONFIG"
CONFIGS_VARIABLE = "COPPICE_SERVED_CONFIGS"
SERVED = "served.json"
MAX_SAID = 8  # settings of a deployment that a line names
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


def as_variable(configs: Sequence[PipelineConfig]) -> dict[str, str]:
    """The environment variable by which a worker is told what its deployments have; none for no configuration."""
    dumped = [config.model_dump(mode="json") for config in configs]
    return {CONFIGS_VARIABLE: json.dumps(dumped)} if dumped else {}


def configs_of_variable() -> list[PipelineConfig]:
    """What `as_variable` wrote; empty where nobody did."""
    return [PipelineConfig.model_validate(config) for config in json.loads(os.environ.get(CONFIGS_VARIABLE, "[]"))]


def register_deployments(*configs: PipelineConfig) -> None:
    """Creates or updates the work pool and the deployments of prefect.yaml, a pair for each configuration.

    Args:
        configs: what the forms start from. Those of the first are called as in the file, those of the others have
            their preset behind the name: ``self-training-gsm8k``.

    Raises:
        ConfigError: no server is named, or it refused.
    """
    require_server("worker")
    _create_pool()
    deploy(suffixed(configs), os.environ)


def suffixed(configs: Sequence[PipelineConfig]) -> dict[str, PipelineConfig]:
    """Configurations by what stands behind the names of their deployments: nothing for the first."""
    first, *others = configs
    return {"": first, **{f"-{config.preset}": config for config in others if config.preset != first.preset}}


def deploy(configs: Mapping[str, PipelineConfig], environment: Mapping[str, str]) -> None:
    """Registers pairs of deployments, and keeps below the home what they have.

    Args:
        configs: by what stands behind the deployments' names.
        environment: names the server.

    Raises:
        ConfigError: the server refused.
    """
    for suffix, config in configs.items():
        with TemporaryDirectory() as folder:
            file = _prefect_file(suffix, Path(folder))
            deployed = subprocess.run(
                [*PREFECT, "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
                env={**environment, CONFIG_VARIABLE: config.model_dump_json()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        if deployed.returncode != 0:
            said = " ".join(deployed.stdout.split())[-600:]
            raise ConfigError(f"worker: {PREFECT_FILE.name} was not accepted: {said}")
    home = Settings().home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    kept = registered(home) | {suffix: config.model_dump(mode="json") for suffix, config in configs.items()}
    write_json(home / SERVED, kept)


def registered(home: Path) -> dict[str, Any]:
    """What `deploy` kept: configurations as JSON, by what stands behind the deployments' names."""
    file = home / SERVED
    return dict(read_json(file)) if file.is_file() else {}


def _prefect_file(suffix: str, folder: Path) -> Path:
    """prefect.yaml, in `folder` with other names where there is a suffix."""
    if not suffix:
        return PREFECT_FILE
    import yaml

    content = yaml.safe_load(PREFECT_FILE.read_text(encoding="utf-8"))
    for deployment in content["deployments"]:
        deployment["name"] += suffix
    [step] = content["build"]
    [options] = step.values()
    renamed = {name.rsplit("/", 1)[0]: name.rsplit("/", 1)[1] for name in options["new_schedules"]}
    options["new_schedules"] = {
        f"{deployment}{suffix}/{slug}": options["new_schedules"][f"{deployment}/{slug}"]
        for deployment, slug in renamed.items()
    }
    file = folder / PREFECT_FILE.name
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def register_changes(configs: Sequence[PipelineConfig], environment: Mapping[str, str]) -> list[str]:
    """Registers what differs from what is registered; a line about each deployment that is new or changed.

    Args:
        configs: see `register_deployments`.
        environment: of the worker that runs already.
    """
    known, changes, lines = registered(Settings().home.resolve()), {}, []
    for suffix, config in suffixed(configs).items():
        before = known.get(suffix)
        name = f"self-training{suffix}"
        if before is None:
            lines.append(f"registered: {name}, preset {config.preset}")
        else:
            old = PipelineConfig.model_validate(known_fields(PipelineConfig, before))
            differing = differing_settings(config, old)
            if not differing:
                continue
            words = [f"{setting} {json.dumps(was)} → {json.dumps(now)}" for setting, (now, was) in differing.items()]
            more = f", and {len(words) - MAX_SAID} more" if len(words) > MAX_SAID else ""
            lines.append(f"registered anew: {name}: {', '.join(words[:MAX_SAID])}{more}")
        changes[suffix] = config
    if changes:
        deploy(changes, environment)
    return lines


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
