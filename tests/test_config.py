from __future__ import annotations

import json

import pytest

from pipeline_lib.config import ConfigError, NamedSet, PipelineConfig, apply_overrides, setting_names

NAMED_IN_THE_CONTRACT = [
    "seed",
    "num_iterations",
    "problems.dataset",
    "problems.path",
    "problems.num_problems",
    "policy.backend",
    "policy.model",
    "search.num_simulations",
    "search.num_candidates",
    "search.c_uct",
    "score.baseline",
    "score.scaling",
    "train.objective",
    "train.kl_beta",
    "train.negative_clip",
    "train.lora_rank",
    "gate.patience",
    "gate.min_gain",
]


def test_every_promised_setting_is_there():
    assert set(NAMED_IN_THE_CONTRACT) <= set(setting_names())


def test_every_setting_says_what_it_is():
    schema = PipelineConfig.model_json_schema()
    groups = [schema, *schema["$defs"].values()]
    missing = [
        (group["title"], name)
        for group in groups
        for name, field in group["properties"].items()
        if "description" not in field and "$ref" not in field
    ]
    assert missing == []


def test_overrides_are_read_as_json_or_text():
    config = apply_overrides(
        PipelineConfig(), ["search.c_uct=0.5", "problems.dataset=gsm8k", 'evaluation.datasets=["gsm8k"]', "seed=7"]
    )
    assert (config.search.c_uct, config.problems.dataset, config.seed) == (0.5, "gsm8k", 7)
    assert config.evaluation.datasets == ("gsm8k",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.num_simulation=3", "nearest is 'search.num_simulations'"),
        ("search.num_simulations", "expected NAME=VALUE"),
        ("search.step_delimiter=lines", "is none of line | blank_line | sentence; as an expression of your own"),
        ("search.step_delimiter=(a", "and no regular expression: missing )"),
        ("search.step_delimiter=a*", "matches the empty text, so it would end a step everywhere"),
        ("search.num_simulations=0", "search.num_simulations=0: Input should be greater than or equal to 1"),
        ("score.baseline=all", "score.baseline='all'"),
        ("search=3", "nearest is 'search."),
    ],
)
def test_a_bad_override_is_refused_in_one_line(override, message):
    with pytest.raises(ConfigError) as caught:
        apply_overrides(PipelineConfig(), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_null_takes_away_the_clip_and_leaves_the_kl_to_the_objective():
    config = apply_overrides(PipelineConfig(), ["train.negative_clip=null", "train.kl_beta=0.2"])
    assert (config.train.negative_clip, config.train.kl_weight) == (None, 0.2)
    own = {o: apply_overrides(config, [f"train.objective={o}", "train.kl_beta=null"]) for o in ("rft", "step-dpo")}
    assert {o: (c.train.kl_weight, c.train.needs_reference) for o, c in own.items()} == {
        "rft": (0, True),
        "step-dpo": (0, True),
    }
    assert PipelineConfig().train.kl_weight == 0.1
    with pytest.raises(ConfigError, match=r"train\.kl_beta=-1: .*greater than or equal to 0"):
        apply_overrides(config, ["train.kl_beta=-1"])


def test_a_single_test_set_needs_no_list_and_none_stands_twice():
    one = apply_overrides(PipelineConfig(), ["evaluation.datasets=gsm8k=/data/test.parquet"])
    assert one.evaluation.datasets == ("gsm8k=/data/test.parquet",)
    with pytest.raises(ConfigError, match="stands twice"):
        apply_overrides(PipelineConfig(), ['evaluation.datasets=["gsm8k=/a", "gsm8k=/b"]'])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.ratio_clip=0.2", "train.reference=base"), r"train\.reference makes another one"),
        (("train.ratio_clip=0.2", "train.replay_iterations=1"), r"train\.replay_iterations makes another one"),
        (("search.spend_saved=undecided", "search.max_tokens_per_problem=500"), "set one of them"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(PipelineConfig(), overrides)


def test_a_test_set_may_have_a_name_of_its_own():
    datasets = ["tiny-word@2", "gsm8k=/a=b", "math=hub:owner/name:main", "aime:math=hub:owner/aime", "big:file=/a:b"]
    config = apply_overrides(PipelineConfig(), [f"evaluation.datasets={json.dumps(datasets)}"])
    assert config.evaluation.test_sets == (
        NamedSet("tiny-word@2", "tiny-word@2", None),
        NamedSet("gsm8k", "gsm8k", "/a=b"),
        NamedSet("math", "math", "hub:owner/name:main"),
        NamedSet("aime", "math", "hub:owner/aime"),
        NamedSet("big", "file", "/a:b"),
    )
    twice = ["aime:math=/a", "aime:file=/b"]
    for wrong, message in {
        json.dumps(twice): "stands twice",
        "aime:math": "expected NAME:DATASET=PATH",
        ":math=/a": "expected NAME:DATASET=PATH",
        "aime:=/a": "expected NAME:DATASET=PATH",
        "a@b:math=/a": "expected NAME:DATASET=PATH",
    }.items():
        with pytest.raises(ConfigError, match=message):
            apply_overrides(PipelineConfig(), [f"evaluation.datasets={wrong}"])
