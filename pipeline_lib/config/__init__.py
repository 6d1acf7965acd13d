"""Every setting of a run, as frozen models; where things live is apart, in `Settings`."""

from pipeline_lib.config.engine_config import ServerConfig, VllmConfig
from pipeline_lib.config.group import ConfigError, ConfigGroup, known_fields
from pipeline_lib.config.named_set import NamedSet
from pipeline_lib.config.overrides import apply_overrides, differing_settings, setting_names
from pipeline_lib.config.pipeline import TEMPLATE_DATE, GradingConfig, PipelineConfig, PolicyConfig, RayConfig
from pipeline_lib.config.settings import EnvironmentSettings, Settings, sqlite_file, sqlite_uri
from pipeline_lib.config.stages import (
    AuditConfig,
    ColumnsConfig,
    EvaluationConfig,
    GateConfig,
    ProblemsConfig,
    ScoreConfig,
    SearchConfig,
)
from pipeline_lib.config.train_config import TrainConfig
from pipeline_lib.config.truncation import Cutoff, Truncated

__all__ = [
    "TEMPLATE_DATE",
    "AuditConfig",
    "ColumnsConfig",
    "ConfigError",
    "ConfigGroup",
    "Cutoff",
    "EnvironmentSettings",
    "EvaluationConfig",
    "GateConfig",
    "GradingConfig",
    "NamedSet",
    "PipelineConfig",
    "PolicyConfig",
    "ProblemsConfig",
    "RayConfig",
    "ScoreConfig",
    "SearchConfig",
    "ServerConfig",
    "Settings",
    "TrainConfig",
    "Truncated",
    "VllmConfig",
    "apply_overrides",
    "differing_settings",
    "known_fields",
    "setting_names",
    "sqlite_file",
    "sqlite_uri",
]
