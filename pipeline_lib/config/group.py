"""What every group of settings is, and the error that all refusals of a setting share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line and says what to do."""


class ConfigGroup(BaseModel):
    """Base of every stage's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
