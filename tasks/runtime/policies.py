"""Which policy: its reference, and the folder where its adapter or its full weights lie."""

from __future__ import annotations

from pathlib import Path

from pipeline_lib.config import PipelineConfig
from pipeline_lib.policy.model_folders import fingerprint, model_commit, model_path
from pipeline_lib.types import PolicyRef, Ref
from tasks.runtime.stage import open_store


def base_policy(config: PipelineConfig) -> PolicyRef:
    """The policy of iteration 0: the base alone; a hub model at the commit that its revision means."""
    revision = _revision(config)
    policy_id = fingerprint(model_path(config.policy.model), revision)
    return PolicyRef(policy_id=policy_id, base_model=config.policy.model, revision=revision, iteration=0)


def _revision(config: PipelineConfig) -> str | None:
    return model_commit(config.policy.model, config.policy.revision) or config.policy.revision


def trained_policy(config: PipelineConfig, trained: Ref, *, iteration: int) -> PolicyRef:
    """The policy that a training stage wrote."""
    return PolicyRef(
        policy_id=fingerprint(adapter_folder(trained)),
        base_model=config.policy.model,
        revision=_revision(config),
        adapter_uri=trained.uri,
        iteration=iteration,
    )


def folder_policy(config: PipelineConfig, folder: str) -> PolicyRef:
    """The base with the adapter, or the full weights, of a folder outside the store.

    Its id names both: one adapter on two bases is two policies, and an evaluation is found again by the id.
    """
    base = base_policy(config)
    return PolicyRef(
        policy_id=f"{base.policy_id}-{fingerprint(Path(folder))}",
        base_model=config.policy.model,
        revision=base.revision,
        adapter_uri=folder,
        iteration=0,
    )


def adapter_folder(trained: Ref) -> Path:
    """Where a training stage put its adapter, or its full weights."""
    return open_store().open(trained) / "policy"


def policy_folder(policy: PolicyRef) -> Path | None:
    """The folder behind ``policy.adapter_uri``; None for the base. A folder outside the store is named by its path."""
    if policy.adapter_uri is None:
        return None
    inside = open_store().folder(policy.adapter_uri) / "policy"
    return inside if inside.is_dir() else Path(policy.adapter_uri)
