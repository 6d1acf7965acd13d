"""The folder below the home that keeps of each run its whole configuration and what it said."""

from __future__ import annotations

from pathlib import Path

from pipeline_lib.config import PipelineConfig
from pipeline_lib.config.yaml_file import config_yaml

CONFIG_FILE = "config.yaml"
"""Also the artifact's name in MLflow."""


def run_folder(home: Path, run_id: str) -> Path:
    """Where a run's files are kept, whether they are there or not.

    Args:
        home: ``COPPICE_HOME``.
        run_id: of MLflow.
    """
    return home.resolve() / "runs" / run_id


def config_file(home: Path, run_id: str) -> Path:
    """The configuration that makes the same run again: ``coppice run --config`` reads it."""
    return run_folder(home, run_id) / CONFIG_FILE


def log_file(home: Path, run_id: str) -> Path:
    """What the run said, with the times."""
    return run_folder(home, run_id) / "run.log"


def keep_config(home: Path, run_id: str, config: PipelineConfig) -> str:
    """Writes `config_file`, and returns what is in it."""
    file, text = config_file(home, run_id), config_yaml(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return text


def runs_told(home: Path, config: PipelineConfig) -> list[str]:
    """Ids of the runs that were last begun with this very configuration, the name included."""
    text = config_yaml(config)
    files = run_folder(home, "").glob(f"*/{CONFIG_FILE}")
    return [file.parent.name for file in files if file.read_text(encoding="utf-8") == text]
