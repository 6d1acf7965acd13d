"""``--set a.b=value``: every setting by its dotted name."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline_lib.config.group import ConfigError, ConfigGroup
from pipeline_lib.config.pipeline import PipelineConfig

SECRET_PARTS = re.compile(r"(?<=://)[^/@\s]*(?=@)|(?<=\?)[^\s'\"]*")  # of an address: user and password, query

Group = TypeVar("Group", bound=ConfigGroup)


def setting_names(model: type[BaseModel] = PipelineConfig, prefix: str = "") -> list[str]:
    """Every name that ``--set`` takes, dotted, in declaration order."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, ConfigGroup):
            names += setting_names(annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def apply_overrides(
    config: Group, overrides: list[str], *, option: str = "--set", example: str = "search.num_simulations=32"
) -> Group:
    """A new configuration with each ``a.b=value`` applied; values are JSON where they parse as it.

    Args:
        config: the whole configuration, or one group of settings.
        overrides: ``NAME=VALUE`` each.
        option: what they were given by, for errors.
        example: what one looks like, for errors.

    Raises:
        ConfigError: a missing ``=``, an unknown name (the nearest known one is named) or a value
            outside its bounds.

    Example: ``apply_overrides(config, ["search.c_uct=0.5"]).search.c_uct == 0.5``
    """
    values: dict[str, Any] = config.model_dump()
    known = setting_names(type(config))
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"{option} {override}: expected NAME=VALUE, for example {example}")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ConfigError(f"{option} {override}: no setting is called {name!r}; the nearest is {nearest[0]!r}")
        group = values
        *parents, leaf = name.split(".")
        for parent in parents:
            group = group[parent]
        group[leaf] = _parse_value(text)
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        given = SECRET_PARTS.sub("…", repr(first["input"]))
        raise ConfigError(f"{option} {name}={given}: {first['msg']}") from None


def differing_settings(config: PipelineConfig, other: PipelineConfig) -> dict[str, tuple[Any, Any]]:
    """Both values, as JSON, of every setting in which two configurations differ, by its dotted name.

    Example: a configuration with ``seed=2`` differs from one with ``seed=0`` in ``{"seed": (2, 0)}``.
    """
    both = config.model_dump(mode="json"), other.model_dump(mode="json")
    values = {name: tuple(_value_of(dumped, name) for dumped in both) for name in setting_names()}
    return {name: (mine, its) for name, (mine, its) in values.items() if mine != its}


def _value_of(dumped: Any, name: str) -> Any:
    for part in name.split("."):
        dumped = dumped[part]
    return dumped


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None if text == "None" else text
