"""What every group of settings is, and the error that all refusals of a setting share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line and says what to do."""


class ConfigGroup(BaseModel):
    """Base of every stage's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def known_fields(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """What a group of settings has of some values, group by group: what a later version saved besides is left out."""
    known: dict[str, Any] = {}
    for name in model.model_fields.keys() & values.keys():
        inner: Any = model.model_fields[name].annotation
        is_group = isinstance(inner, type) and issubclass(inner, ConfigGroup) and isinstance(values[name], Mapping)
        known[name] = known_fields(inner, values[name]) if is_group else values[name]
    return known
