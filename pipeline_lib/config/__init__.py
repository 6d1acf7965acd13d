"""Every setting of a run, as frozen models; where things live is apart, in `Settings`."""

from pipeline_lib.config.engines import ServerConfig, VllmConfig
from pipeline_lib.config.group import ConfigError, Group
from pipeline_lib.config.overrides import apply_overrides, dial_names
from pipeline_lib.config.pipeline import (
    AuditConfig,
    EvaluationConfig,
    GateConfig,
    GradingConfig,
    PipelineConfig,
    PolicyConfig,
    ProblemsConfig,
    RayConfig,
    ScoreConfig,
    SearchConfig,
    TrainConfig,
)
from pipeline_lib.config.settings import Settings

__all__ = [
    "AuditConfig",
    "ConfigError",
    "EvaluationConfig",
    "GateConfig",
    "GradingConfig",
    "Group",
    "PipelineConfig",
    "PolicyConfig",
    "ProblemsConfig",
    "RayConfig",
    "ScoreConfig",
    "SearchConfig",
    "ServerConfig",
    "Settings",
    "TrainConfig",
    "VllmConfig",
    "apply_overrides",
    "dial_names",
]
