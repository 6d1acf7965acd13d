"""The one open engine of a process: when it is kept, what prompts it makes, and when it gives its memory back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fixtures import DATED_TEMPLATE

from deployments.presets import preset
from pipeline_lib.config import PipelineConfig, apply_overrides
from pipeline_lib.policy import SampleRequest, SamplingParams, sample_all
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.types import Problem
from tasks.runtime.engines import engines, open_policy
from tasks.runtime.policies import base_policy
from tasks.runtime.prompts import instruction_for, prompt_codec

WORD = [Problem("w/0", "What is 2 plus 3?", "5", "tiny-word")]
GSM8K = [Problem("g/0", "What is 2 plus 3?", "5", "gsm8k")]


@pytest.fixture
def config() -> Iterator[PipelineConfig]:
    yield apply_overrides(preset("tiny"), ["policy.device=cpu", "policy.max_batch=16"])
    engines.close()


def test_the_instruction_is_the_users_or_that_of_the_dataset(config: PipelineConfig) -> None:
    assert instruction_for(config, "tiny-word") == ""
    assert "####" in instruction_for(config, "gsm8k")
    own = apply_overrides(config, ["policy.instruction=Think."])
    assert instruction_for(own, "gsm8k") == instruction_for(own, "tiny-word") == "Think."


def test_an_engine_is_kept_for_another_dataset_and_makes_its_prompts(config: PipelineConfig) -> None:
    base = base_policy(config)
    policy = open_policy(config, base, WORD)
    bare = policy.codec.encode_prompt(WORD[0].question)
    assert open_policy(config, base, GSM8K) is policy
    asked = policy.codec.decode(policy.codec.encode_prompt(GSM8K[0].question))
    assert instruction_for(config, "gsm8k") in asked
    assert open_policy(config, base, WORD).codec.encode_prompt(WORD[0].question).tolist() == bare.tolist()


def test_an_engine_with_requests_of_a_failed_task_or_without_memory_is_opened_again(config: PipelineConfig) -> None:
    base = base_policy(config)
    first = open_policy(config, base, WORD)
    request = SampleRequest("a", first.codec.encode_prompt(WORD[0].question), SamplingParams(4, 0.0), 0)
    first.submit([request])
    second = open_policy(config, base, WORD)
    assert second is not first
    found = sample_all(second, [request])["a"]
    engines.free_for_training()
    third = open_policy(config, base, WORD)
    assert third is not second
    assert sample_all(third, [request])["a"].token_ids.tolist() == found.token_ids.tolist()


def test_a_template_that_names_the_day_is_told_a_fixed_one(config: PipelineConfig, tmp_path: Path) -> None:
    """As it stands in every prompt: the engine's own, and those that are measured before a run."""
    shutil.copytree(TINY_BASE, tmp_path / "dated")
    (tmp_path / "dated" / "chat_template.jinja").write_text(DATED_TEMPLATE, encoding="utf-8")
    dated = apply_overrides(config, [f"policy.model={tmp_path / 'dated'}"])
    moved = apply_overrides(dated, ["policy.template_date=2025-01-31"])
    for chosen, day in ((dated, "26 Jul 2024"), (moved, "31 Jan 2025")):
        for codec in (prompt_codec(chosen, "tiny-word"), open_policy(chosen, base_policy(chosen), WORD).codec):
            assert day in codec.decode(codec.encode_prompt("2+3?"))
