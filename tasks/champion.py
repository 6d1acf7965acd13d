"""The registry's champion: which version it is, its weights in the store, and what it scored."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from typing import Any

from prefect import State, task
from prefect.states import Completed

from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.policy.model_folders import fingerprint, model_commit
from pipeline_lib.store import PARTIAL, Entry, StoreError
from pipeline_lib.tracking import (
    Champion,
    download_champion,
    model_name,
    registered_champion,
    registered_version,
)
from pipeline_lib.tracking.outage import TrackingOutage
from pipeline_lib.tracking.registered_model import MODELS
from pipeline_lib.types import EvalReport, PolicyRef, Ref
from tasks.reporting.evaluation_run import track_evaluation
from tasks.runtime.artifacts import show_markdown
from tasks.runtime.keys import key_text
from tasks.runtime.policies import folder_policy
from tasks.runtime.stage import Done, stage


def find_champion(config: PipelineConfig) -> Champion | None:
    """The version that the registry calls champion of the configuration's preset; None while there is none."""
    return registered_champion(Settings(), config.preset)


def champion_policy(config: PipelineConfig, champion: Champion) -> PolicyRef:
    """The champion as a policy, its weights copied from the registry into the store.

    Raises:
        ConfigError: the configuration has another base than the one that it was trained on.
    """
    for dial, own, configured in (
        ("model", champion.base_model, config.policy.model),
        ("revision", champion.revision, _revision(config, champion)),
    ):
        if configured != own:
            raise ConfigError(
                f"policy.{dial}={configured}: {champion.model} version {champion.version} was trained on {own}; "
                "set that, or evaluate the preset that has this base"
            )
    fetched = fetch_champion(champion=champion)
    return PolicyRef(
        policy_id=champion.policy_id,
        base_model=config.policy.model,
        revision=champion.revision,
        adapter_uri=fetched.uri,
        iteration=champion.iteration,
    )


def named_policy(config: PipelineConfig, adapter: str) -> PolicyRef:
    """The policy in a folder, or the registered version that ``models:/coppice-tiny@champion`` or ``…/3`` names.

    Raises:
        ConfigError: the version was trained on another base than the configuration's.
        TrackingError: there is no such version.
    """
    if not adapter.startswith(MODELS):
        return folder_policy(config, adapter)
    return champion_policy(config, registered_version(Settings(), adapter))


def _revision(config: PipelineConfig, champion: Champion) -> str | None:
    """What the configuration says of the base's revision, as a commit where the champion names one: none is its own."""
    configured = config.policy.revision
    if configured in (None, champion.revision):
        return champion.revision
    return model_commit(config.policy.model, configured) or configured


def _fetch_spec(*, champion: Champion) -> dict[str, Any]:
    return {"policy_id": champion.policy_id}


@stage(_fetch_spec, run_name="fetch version {champion.version}", transient=(TrackingOutage,))
def fetch_champion(entry: Entry, *, champion: Champion) -> Done:
    """Copies a registered version's files; they must be the very ones that were registered."""
    copied = download_champion(Settings(), champion, entry.path / PARTIAL)
    if fingerprint(copied) != champion.policy_id:
        raise StoreError(
            f"registry: the files of {champion.model} version {champion.version} are not those of policy "
            f"{champion.policy_id}; roll back to another version"
        )
    shutil.rmtree(entry.path / "policy", ignore_errors=True)  # of a process that was killed right here
    copied.rename(entry.path / "policy")
    return Done(1)


@task(name="record-champion", task_run_name="record version {champion.version}")
def record_champion(*, config: PipelineConfig, champion: Champion, evaluations: Sequence[Ref]) -> list[EvalReport]:
    """Writes the reports to an MLflow run of their own, and a table to Prefect.

    The run is named by what was measured on what: a night on which nothing changed adds nothing.
    """
    policy = PolicyRef(policy_id=champion.policy_id, base_model=config.policy.model, iteration=champion.iteration)
    material = "\n".join([champion.model, champion.version, key_text(config), *(r.sha256 for r in evaluations)])
    _, reports = track_evaluation(
        config,
        policy,
        evaluations,
        run_key=f"champion-{hashlib.sha256(material.encode()).hexdigest()[:16]}",
        run_name=f"champion v{champion.version}",
        tags={"coppice.evaluated_version": f"{champion.model}/{champion.version}"},
    )
    rows = [f"| {r.dataset} | {r.accuracy:.1%} | {r.interval[0]:.1%} – {r.interval[1]:.1%} |" for r in reports]
    title = f"{champion.model} version {champion.version}, the champion"
    table = "\n".join([f"**{title}**", "", "| test set | accuracy | 95 % interval |", "|---|---|---|", *rows])
    show_markdown(table, key="champion", description=title)
    return reports


def no_champion(config: PipelineConfig) -> State[list[EvalReport]]:
    """A completed state that says why there was nothing to measure."""
    message = (
        f"{model_name(config.preset)} has no champion yet: no run has ended with an iteration better than its base"
    )
    show_markdown(message, key="champion", description=message)
    return Completed(name="No champion", message=message, data=[])
