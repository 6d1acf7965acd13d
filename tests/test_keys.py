"""What of a configuration is in a store key: a field that came later is not, while nothing is changed by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_fixtures import DATED_TEMPLATE, cache_model
from pydantic import Field
from record_fixtures import make_record

from deployments.presets import PRESETS
from pipeline_lib.config import ConfigGroup, PipelineConfig, TrainConfig, apply_overrides
from pipeline_lib.grading import GradingError
from pipeline_lib.grading.workers.verifier import verifier_digest
from pipeline_lib.types import GateDecision, IterationRecord, PolicyRef, Ref
from tasks import evaluate, gate
from tasks import record as record_stage
from tasks.runtime.engines import engine_spec
from tasks.runtime.graders import as_evaluated, open_grader
from tasks.runtime.keys import key_of
from tasks.runtime.policies import base_policy

GOLDEN = Path(__file__).parent / "golden" / "keys.json"
COMMITS = ("a" * 40, "b" * 40)


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
        ("weighting", "sign", {"relative-correctness"}),
        ("weighting_temperature", 0.5, set()),
        ("value_weight", 0.5, {"relative-correctness"}),
        ("soft_clip", 1.0, {"relative-correctness"}),
        ("ratio_clip", 0.2, {"relative-correctness"}),
        ("kl_on", "path", {"relative-correctness"}),
        ("start", "base", {"relative-correctness", "rft", "step-dpo"}),
        ("reference", "base", {"relative-correctness", "rft", "step-dpo"}),
        ("lora_scaling", "sqrt_rank", {"relative-correctness", "rft", "step-dpo"}),
        ("lora_targets", "attention", {"relative-correctness", "rft", "step-dpo"}),
        ("learning_rate_schedule", "linear", {"relative-correctness", "rft", "step-dpo"}),
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
    assert training_key(**unmeasured, reference="base", kl_on="path") == training_key(**unmeasured)
    exponential = {"weighting": "exp"}
    assert training_key(**exponential, weighting_temperature=0.5) != training_key(**exponential)
    full = {"full_finetuning": True}
    adapter = {"lora_rank": 4, "lora_alpha": 4, "lora_scaling": "sqrt_rank", "lora_targets": "attention"}
    assert training_key(**full, **adapter) == training_key(**full)
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


@pytest.mark.parametrize("setting", ["temperature=0.6", "top_p=0.9"])
def test_how_samples_are_drawn_is_in_the_key_where_there_are_any(setting: str) -> None:
    assert evaluation_spec(f"evaluation.{setting}") == evaluation_spec()
    samples = "evaluation.num_samples=2"
    assert evaluation_spec(samples, f"evaluation.{setting}") != evaluation_spec(samples)


def names_of_today(config: PipelineConfig) -> dict[str, str]:
    """Where each stage keeps its result of a configuration, for references that never were."""
    from tasks.audit import audit_iteration
    from tasks.finish import finish_run
    from tasks.problems import draw_problems, draw_test_problems
    from tasks.runtime.flow_tracking import run_key
    from tasks.score import score_steps
    from tasks.search import gather_trees, search_shard
    from tasks.train import train_policy

    ref = Ref(uri="stage/key", sha256="0" * 64, num_rows=1, schema_version=1)
    policy = PolicyRef(policy_id="p", base_model="tiny", iteration=0)
    adapter = PolicyRef(policy_id="q", base_model="tiny", adapter_uri="stage/key", iteration=1)
    decision = GateDecision(proceed=False, champion=1, reason="enough")
    run = {"config": config, "iteration": 1}
    searched = {**run, "problems": ref, "policy": policy}
    scored = {**run, "trees": (ref,), "scores": ref}
    measured = {"config": config, "problems": ref, "split": "test", "name": "tiny-word test"}
    rft = apply_overrides(config, ["train.objective=rft"])
    greedy = apply_overrides(config, ["evaluation.num_samples=0"])
    recorded = {"config": config, "policy": policy, "stages": {"search": (ref,)}, "evaluations": [ref], "earlier": []}
    entries = {
        "validation": draw_problems.entry(config=config, iteration=0),
        "problems": draw_problems.entry(**run),
        "test problems": draw_test_problems.entry(config=config, dataset="tiny-word", path=None),
        "shard": search_shard.entry(**searched, shard=0, earlier=()),
        "trees": gather_trees.entry(**searched, earlier=()),
        "trees of the remedy": gather_trees.entry(**searched, earlier=(ref,)),
        "scores": score_steps.entry(**run, trees=(ref,)),
        "audit": audit_iteration.entry(**scored, earlier=()),
        "training": train_policy.entry(**scored, policy=policy),
        "training, rft": train_policy.entry(**{**scored, "config": rft}, policy=policy),
        "evaluation": evaluate.evaluate_policy.entry(**measured, policy=policy),
        "evaluation, adapter": evaluate.evaluate_policy.entry(**measured, policy=adapter),
        "evaluation, greedy": evaluate.evaluate_policy.entry(**{**measured, "config": greedy}, policy=policy),
        "record": record_stage.record_iteration.entry(**recorded, index=0, parent=None),
        "gate": gate.decide_gate.entry(config=config, records=[make_record(1, 0.7)]),
        "finish": finish_run.entry(config=config, records=[make_record(1, 0.7)], decision=decision),
    }
    return {"run": run_key(config)} | {name: entry.uri for name, entry in entries.items()}


def test_todays_keys_stay_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the file is in people's stores. A key moves only where its result does: by its stage's version."""
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path))
    monkeypatch.setattr("tasks.runtime.flow_tracking.describe_environment", dict)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert names_of_today(PipelineConfig.model_validate(golden["config"])) == golden["keys"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's models."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def hub_config(*overrides: str) -> PipelineConfig:
    return apply_overrides(PipelineConfig(), ["policy.model=owner/name", *overrides])


def test_a_hub_model_is_the_commit_that_its_revision_means(hub: Path) -> None:
    first, second = COMMITS
    cache_model(hub, "owner/name", first)
    moving = base_policy(hub_config())
    assert moving.revision == first
    assert base_policy(hub_config(f"policy.revision={first}")) == moving
    assert base_policy(hub_config("policy.revision=main")) == moving
    cache_model(hub, "owner/name", second, ref="tried")
    tried = base_policy(hub_config("policy.revision=tried"))
    assert (tried.revision, tried.policy_id == moving.policy_id) == (second, False)
    cache_model(hub, "owner/name", second)  # the branch moves on
    assert base_policy(hub_config()) == moving, "in the middle of a run it does not"
    from pipeline_lib.policy.model_folders import _commit

    _commit.cache_clear()
    assert base_policy(hub_config()) == tried


def write_verifier(folder: Path, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    (folder / "rules.py").write_text(f"def verify(prediction, gold):\n    return {body}\n", encoding="utf-8")


def graded_keys(grader: str) -> tuple[str, str]:
    verifier_digest.cache_clear()
    config = apply_overrides(PipelineConfig(), [f"grader={grader}"])
    problems = Ref(uri="draw/1", sha256="0" * 64, num_rows=1, schema_version=1)
    return json.dumps(evaluation_spec(f"grader={grader}")), evaluate._yardstick(config, problems, "tiny-word")


def test_the_source_of_a_users_grader_is_in_the_keys_and_the_yardstick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_verifier(tmp_path / "own_rules", "prediction == gold")
    before = graded_keys("own_rules.rules:verify")  # and the package was not imported
    assert graded_keys("own_rules.rules:verify") == before
    (tmp_path / "own_rules" / "helpers.py").write_text("LIMIT = 3\n", encoding="utf-8")
    helped = graded_keys("own_rules.rules:verify")
    write_verifier(tmp_path / "own_rules", "prediction.strip() == gold")
    changed = graded_keys("own_rules.rules:verify")
    for one, other, third in zip(before, helped, changed, strict=True):
        assert len({one, other, third}) == 3
    (tmp_path / "rules_alone.py").write_text("def verify(prediction, gold): return True\n", encoding="utf-8")
    alone = graded_keys("rules_alone:verify")
    (tmp_path / "beside.py").write_text("", encoding="utf-8")
    assert graded_keys("rules_alone:verify") == alone


def test_an_evaluation_has_the_grader_that_it_names_and_the_key_of_it() -> None:
    assert evaluation_spec("evaluation.grader=operator:eq") == evaluation_spec("grader=operator:eq")
    assert evaluation_spec("evaluation.grader=math", "grader=operator:eq") == evaluation_spec()
    lax = apply_overrides(PipelineConfig(), ["grader=operator:eq", "evaluation.grader=math"])
    assert (lax.grader, as_evaluated(lax).grader, as_evaluated(PipelineConfig()).grader) == (
        "operator:eq",
        "math",
        "math",
    )


def test_a_grader_whose_source_changes_under_a_run_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moving_rules.py").write_text("def verify(prediction, gold): return True\n", encoding="utf-8")
    graded_keys("moving_rules:verify")
    config = apply_overrides(PipelineConfig(), ["grader=moving_rules:verify"])
    open_grader(config, "tiny-word").close()
    (tmp_path / "moving_rules.py").write_text("def verify(prediction, gold): return False\n", encoding="utf-8")
    with pytest.raises(GradingError, match=r"^grader=moving_rules:verify: its source has changed .*; run again$"):
        open_grader(config, "tiny-word")


def test_coppices_own_grader_has_no_source_in_a_key() -> None:
    assert "grader_source" not in evaluation_spec()


def test_what_makes_a_prompt_is_in_the_key_as_it_resolves(hub: Path) -> None:
    cache_model(hub, "owner/name", COMMITS[0])
    cache_model(hub, "owner/dated", COMMITS[1], template=DATED_TEMPLATE)
    config, dated = PipelineConfig(), hub_config("policy.model=owner/dated")
    plain = engine_spec(config, base_policy(config), "tiny-word")
    assert plain == {
        "backend": "transformers",
        "dtype": "float32",
        "max_context_tokens": 1024,
        "instruction": None,  # as in 0.1.0, where the tiny worlds have none
    }
    gsm8k, own = engine_spec(config, base_policy(config), "gsm8k"), "policy.instruction=Think."
    assert "step by step" in gsm8k["instruction"]
    assert engine_spec(hub_config(own), base_policy(hub_config()), "gsm8k")["instruction"] == "Think."
    base = base_policy(dated)
    spec = engine_spec(dated, base, "tiny-word")
    assert spec == plain | {"template_date": "2024-07-26"}  # the template itself is in the base's id
    assert engine_spec(hub_config("policy.template_date=2025-01-01"), base_policy(hub_config()), "tiny-word") == plain
    adapter = base.model_copy(update={"policy_id": "lora", "adapter_uri": "train/x"})
    assert engine_spec(dated, adapter, "tiny-word")["template"] != plain


def test_settings_and_records_of_a_later_version_are_read() -> None:
    record = make_record(1)
    saved = record.model_dump(mode="json")
    saved["evaluations"][0]["invented_later"] = saved["invented_later"] = {"a": 1}
    again = IterationRecord.model_validate(saved)
    assert again == record
    assert key_of(again) == key_of(record)


def test_records_of_version_0_1_0_are_read_and_have_their_keys() -> None:
    record = make_record(2)
    saved = old_dump(record) | {"search": {}, "train": {}, "seconds": {}}
    again = IterationRecord.model_validate(saved)
    assert again.parent is None
    assert key_of(again, without=record_stage.MEASURED) == old_dump(record)
