"""A configuration as a YAML file: what ``--config`` reads, ``coppice config`` prints and every run keeps.

A file may name all settings or a few; those that it leaves out are the preset's. PyYAML is imported late: few need it.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline_lib.config.group import ConfigError, ConfigGroup
from pipeline_lib.config.overrides import SECRET_PARTS, setting_names
from pipeline_lib.config.pipeline import PipelineConfig

WIDTH = 100
INDENT = "  "


def config_yaml(config: PipelineConfig, *, describe: bool = False) -> str:
    """The whole configuration as YAML, from which `read_config_file` makes the same one.

    Args:
        config: what is written.
        describe: each setting's description stands above it, as a comment.
    """
    return "\n".join(_lines(config, "", describe)) + "\n"


def _lines(group: BaseModel, indent: str, describe: bool) -> Iterator[str]:
    dumped = group.model_dump(mode="json")
    for name, field in type(group).model_fields.items():
        if describe and field.description:
            comment = textwrap.wrap(f"# {field.description}", WIDTH - len(indent), subsequent_indent="# ")
            yield from (indent + line for line in comment)
        value = getattr(group, name)
        if isinstance(value, ConfigGroup):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + INDENT, describe)
        else:
            yield f"{indent}{name}: {_on_one_line(dumped[name])}"


def _on_one_line(value: Any) -> str:
    """A value as YAML without a line feed; lists, tables and texts of several lines as JSON, which is YAML too."""
    import yaml

    if isinstance(value, (list, dict)) or (isinstance(value, str) and "\n" in value):
        return json.dumps(value, ensure_ascii=False)
    text: str = yaml.safe_dump({"": value}, allow_unicode=True, width=10**6)
    return text.partition(":")[2].strip()


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file's settings.

    Args:
        path: the file.
        values: by dotted name.
        lines: the line of each, from 1, by dotted name, groups included.
    """

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[str, int]

    @property
    def is_whole(self) -> bool:
        """Whether it names every setting, as a file of `config_yaml` does."""
        return set(setting_names()) <= self.values.keys()

    def apply(self, config: PipelineConfig) -> PipelineConfig:
        """The configuration with this file's settings in place of its own.

        Raises:
            ConfigError: a value that is out of bounds; file, line and setting are named.
        """
        merged: dict[str, Any] = config.model_dump()
        for name, value in self.values.items():
            *parents, leaf = name.split(".")
            group = merged
            for parent in parents:
                group = group[parent]
            group[leaf] = value
        try:
            return PipelineConfig.model_validate(merged)
        except ValidationError as error:
            raise self._refusal(error) from None

    def place(self, name: str) -> str:
        """File and line of a setting, as an error names them."""
        names = [name.rsplit(".", drop)[0] for drop in range(name.count(".") + 1)]
        line = next((self.lines[each] for each in names if each in self.lines), None)
        return f"{self.path}" if line is None else f"{self.path}, line {line}"

    def _refusal(self, error: ValidationError) -> ConfigError:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        given = SECRET_PARTS.sub("…", repr(first["input"]))
        return ConfigError(f"{self.place(name)}: {name}: {given}: {first['msg']}")


def read_config_file(path: Path) -> ConfigFile:
    """The settings that a YAML file names.

    Raises:
        ConfigError: no such file, no YAML, an unknown setting (the nearest is named), or one that stands twice.
    """
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise ConfigError(f"{path}: cannot be read: {reason}; `coppice config > FILE` writes one") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: no YAML: {error.problem}") from None
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    if root is not None:
        try:
            _gather(path, root, PipelineConfig, "", values, lines, yaml.SafeLoader("").construct_document)
        except yaml.MarkedYAMLError as error:  # a kind of value that YAML does not know
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise ConfigError(f"{path}{line}: {error.problem}") from None
    return ConfigFile(path, values, lines)


def _gather(
    path: Path,
    node: Any,
    group: type[BaseModel],
    prefix: str,
    values: dict[str, Any],
    lines: dict[str, int],
    value_of: Callable[[Any], Any],
) -> None:
    """Puts what a mapping names into `values` and `lines`, group by group."""
    where = f"{path}, line {node.start_mark.line + 1}"
    if node.id != "mapping":
        raise ConfigError(f"{where}: {prefix.rstrip('.') or 'the file'}: expected settings, NAME: VALUE on a line each")
    for key, value in node.value:
        name, line = prefix + str(key.value), key.start_mark.line + 1
        field = group.model_fields.get(str(key.value))
        if field is None:
            nearest = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.0)[0]
            raise ConfigError(f"{path}, line {line}: no setting is called {name!r}; the nearest is {nearest!r}")
        if name in lines:
            raise ConfigError(f"{path}, line {line}: {name} stands in line {lines[name]} already; keep one of them")
        lines[name] = line
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, ConfigGroup):
            _gather(path, value, annotation, f"{name}.", values, lines, value_of)
        else:
            values[name] = value_of(value)
