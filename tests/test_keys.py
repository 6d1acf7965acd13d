"""What of a configuration is in a store key: a field that came later is not, while nothing is changed by it."""

from __future__ import annotations

import pytest
from pydantic import Field
from record_fixtures import make_record

from deployments.presets import PRESETS
from pipeline_lib.config import ConfigGroup, PipelineConfig, TrainConfig, apply_overrides
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


def training_key(**changes: object) -> str:
    from tasks.train import train_policy

    ref = Ref(uri="stage/key", sha256="0" * 64, num_rows=1, schema_version=1)
    config = PipelineConfig(train=TrainConfig.model_validate(changes))
    policy = PolicyRef(policy_id="p", base_model="tiny", iteration=0)
    return train_policy.entry(config=config, trees=(ref,), scores=ref, policy=policy, iteration=1).uri


@pytest.mark.parametrize(
    ("setting", "value", "where"),
    [
        ("dpo_beta", 0.5, {"step-dpo"}),
        ("negative_clip", None, {"relative-correctness"}),
        ("kl_beta", 0.5, {"relative-correctness", "rft", "step-dpo"}),
        ("kl_alarm", 0.5, {"relative-correctness", "rft", "step-dpo"}),
        ("warmup_updates", 1, {"relative-correctness", "rft", "step-dpo"}),
        ("checkpoint_every", 1, set()),
        ("gradient_checkpointing", True, set()),
        ("tokens_per_microbatch", 64, set()),
        ("num_processes", 2, set()),
        ("shard_weights", True, set()),
    ],
)
def test_a_training_setting_is_in_the_key_where_it_has_an_effect(setting: str, value: object, where: set[str]) -> None:
    objectives = ("relative-correctness", "rft", "step-dpo")
    moved = {o for o in objectives if training_key(objective=o, **{setting: value}) != training_key(objective=o)}
    assert moved == where


def test_a_kl_beta_left_open_is_in_the_key_as_the_number_that_it_stands_for() -> None:
    assert training_key(kl_beta=0.1) == training_key()
    assert training_key(objective="step-dpo", kl_beta=0) == training_key(objective="step-dpo")
    assert training_key(objective="rft", kl_beta=0) != training_key(objective="rft")  # the KL, and its alarm, go


def test_settings_of_what_is_not_there_are_in_no_key() -> None:
    unmeasured = {"kl_beta": 0}
    assert training_key(**unmeasured, kl_alarm=0.5) == training_key(**unmeasured)
    full = {"full_finetuning": True}
    assert training_key(**full, lora_rank=4, lora_alpha=4) == training_key(**full)
    assert training_key(lora_rank=4) != training_key()


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
    later = {"evaluate", "parent"}
    dumped = record.model_dump(mode="json", exclude={"search", "train", "seconds", "tracking_run", *later})
    for report in dumped["evaluations"]:
        for name in ("sampled_interval", "num_ignored", "cutoffs"):
            del report[name]
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
