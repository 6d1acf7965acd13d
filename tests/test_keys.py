"""What of a configuration is in a store key: a field that came later is not, while nothing is changed by it."""

from __future__ import annotations

from pydantic import Field

from deployments.presets import PRESETS
from pipeline_lib.config import ConfigGroup, PipelineConfig, apply_overrides
from pipeline_lib.types import PolicyRef, Ref
from tasks import evaluate
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


def evaluation_spec(*overrides: str) -> dict[str, object]:
    return evaluate._spec(
        config=apply_overrides(PipelineConfig(), list(overrides)),
        problems=Ref(uri="draw/1", sha256="0" * 64, num_rows=1, schema_version=1),
        policy=PolicyRef(policy_id="p", base_model="tiny", iteration=0),
        split="test",
        name="any",
    )


def test_only_evaluations_with_samples_are_made_again_for_the_new_votes() -> None:
    greedy, sampled = evaluation_spec(), evaluation_spec("evaluation.num_samples=2")
    assert greedy["evaluation"] == {"num_samples": 0, "sampled_problems": 100, "max_new_tokens": 256}
    assert ("votes" in greedy, "votes" in sampled) == (False, True)
    assert evaluation_spec("evaluation.num_samples=2", "evaluation.pass_k=1") != sampled
