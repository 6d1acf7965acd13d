"""What of a configuration is in a store key: a field that came later is not, while nothing is changed by it."""

from __future__ import annotations

from pydantic import Field

from deployments.presets import PRESETS
from pipeline_lib.config import ConfigGroup
from tasks.runtime.keys import key_of


class Inner(ConfigGroup):
    depth: int = 3
    width: int = Field(2, json_schema_extra={"before": 1})


class Outer(ConfigGroup):
    inner: Inner = Inner()
    many: tuple[Inner, ...] = (Inner(), Inner(width=1))
    named: dict[str, Inner] = {"a": Inner(width=1)}  # noqa: RUF012 - pydantic copies it
    rule: str | None = Field(None, json_schema_extra={"before": None})
    shown: bool = True


def test_a_later_field_is_in_the_key_only_where_it_changes_something() -> None:
    assert key_of(Outer(), without={"shown"}) == {
        "inner": {"depth": 3, "width": 2},
        "many": [{"depth": 3, "width": 2}, {"depth": 3}],
        "named": {"a": {"depth": 3}},
    }
    assert key_of(Outer(rule="new"))["rule"] == "new"


def test_without_later_fields_a_key_is_the_whole_group() -> None:
    for make in PRESETS.values():
        group = make().gate
        assert set(key_of(group)) <= set(group.model_dump(mode="json"))
