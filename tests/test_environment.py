"""Defaults of the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deployments.environment import prepare_environment
from pipeline_lib.config import Settings


def test_the_environment_is_only_a_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {"DO_NOT_TRACK": "mine"})
    prepare_environment(Settings(home=tmp_path))
    assert os.environ["DO_NOT_TRACK"] == "mine"
    assert os.environ["PREFECT_LOCAL_STORAGE_PATH"] == str(tmp_path / "prefect")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
