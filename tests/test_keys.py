"""What of a configuration is in a store key: a field that came later is not, while nothing is changed by it."""

from __future__ import annotations

import pytest
from pydantic import Field
from record_fixtures import make_record

from deployments.presets import PRESETS
from pipeline_lib.config import ConfigGroup, PipelineConfig, apply_overrides
from pipeline_lib.types import IterationRecord, PolicyRef, Ref
from tasks import evaluate, gate
from tasks import record as record_stage
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


def gate_spec(records: list[IterationRecord], *overrides: str) -> dict[str, object]:
    return gate._gate_spec(config=apply_overrides(PipelineConfig(), list(overrides)), records=records)


def old_dump(record: IterationRecord) -> dict[str, object]:
    """What version 0.1.0 took of a record into later keys."""
    dumped = record.model_dump(mode="json", exclude={"search", "train", "seconds", "tracking_run", "parent"})
    for report in dumped["evaluations"]:
        del report["sampled_interval"]
    return dumped


def test_the_gates_key_is_that_of_version_0_1_0_where_its_rule_is() -> None:
    record = make_record(1, 0.7)
    plain = gate_spec([record])
    assert plain == {
        "gate": {"patience": 1, "min_gain": 0.0, "require_interval": False},
        "dataset": "tiny-word",
        "records": [old_dump(record)],
    }
    assert gate_spec([record], "gate.continue_from=last") == plain  # it decides whose child comes next, not whether
    assert gate_spec([record], "gate.require_interval=true")["interval"] == "paired"
    assert gate_spec([record.model_copy(update={"parent": 0})]) != plain


@pytest.mark.parametrize(("parent", "is_named"), [(1, False), (0, True)])
def test_a_records_key_names_its_parent_where_that_is_not_the_one_before(parent: int, is_named: bool) -> None:
    spec = record_stage._record_spec(
        config=PipelineConfig(),
        index=2,
        parent=make_record(parent).policy,
        policy=make_record(2).policy,
        stages={},
        evaluations=[],
        earlier=[],
    )
    assert ("parent" in spec) is is_named


def test_only_evaluations_with_samples_are_made_again_for_the_new_votes() -> None:
    greedy, sampled = evaluation_spec(), evaluation_spec("evaluation.num_samples=2")
    assert greedy["evaluation"] == {"num_samples": 0, "sampled_problems": 100, "max_new_tokens": 256}
    assert ("votes" in greedy, "votes" in sampled) == (False, True)
    assert evaluation_spec("evaluation.num_samples=2", "evaluation.pass_k=1") != sampled
