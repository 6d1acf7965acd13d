"""What is said around a question: seen in the prompt, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from policy_fixtures import write_tokenizer
from transformers import AutoTokenizer

from deployments.preflight.problem_checks import _shortened
from pipeline_lib.config import ConfigError, PipelineConfig, PolicyConfig, apply_overrides
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.prompting.conversation import Conversation
from pipeline_lib.policy.tokenizers import load_codec
from tasks.runtime.engines import engine_spec
from tasks.runtime.policies import base_policy

TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
ANSWER = "{% if add_generation_prompt %}[assistant]{% endif %}"
THINKING = "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
USERS_ONLY = "{% for m in messages if m.role == 'user' %}[user]{{ m.content }}{% endfor %}" + ANSWER
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS


def codec_with(folder: Path, template: str, **settings: object) -> TokenizerCodec:
    write_tokenizer(folder, chat_template=template)
    return load_codec(folder, PolicyConfig.model_validate({"model": str(folder), **settings}), "be brief")


def prompt(codec: TokenizerCodec) -> str:
    return codec.template.text(codec.conversation.turns("1+1?"))


def test_the_system_comes_first_and_the_instruction_last(tmp_path: Path) -> None:
    template = TURNS + ANSWER + THINKING
    plain = codec_with(tmp_path, template)
    assert prompt(plain) == "[user]1+1?\nbe brief[assistant]"
    told = codec_with(tmp_path, template, system_prompt="you add ", chat_template_kwargs={"enable_thinking": False})
    assert prompt(told) == "[system]you add[user]1+1?\nbe brief[assistant]<no>"
    assert "<no>" not in prompt(codec_with(tmp_path, template, chat_template_kwargs={"enable_thinking": True}))
    assert prompt(codec_with(tmp_path, template, system_prompt="")).startswith("[system][user]")


def test_the_prompts_tokens_are_those_of_its_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)  # each turn is <user>, whoever speaks
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    codec = TokenizerCodec(tokenizer, Conversation(system="you add"))
    names = tokenizer.convert_ids_to_tokens(codec.encode_prompt("ab").tolist())
    assert names == ["<user>", *"you add", "<user>", *"ab", "<assistant>"]


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (USERS_ONLY, {"system_prompt": "you add"}, "policy.system_prompt: .* drops the system's turn"),
        (REFUSING, {"system_prompt": "you add"}, r"refuses the prompt \(System role not supported\)"),
        (TURNS, {"chat_template_kwargs": {"enable_thinking": False}}, "never asks for 'enable_thinking'"),
        (TURNS, {"chat_template_kwargs": {"add_generation_prompt": False}}, "is set by Coppice itself"),
        (TURNS, {"chat_template_kwargs": {"messages": []}}, "is set by Coppice itself"),
    ],
)
def test_what_does_not_reach_the_prompt_is_refused(
    tmp_path: Path, template: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        codec_with(tmp_path, template, **settings)
    assert "\n" not in str(caught.value)
    codec_with(tmp_path, template)  # as it is it can be used


def test_an_option_is_an_object() -> None:
    assert apply_overrides(
        PipelineConfig(), ['policy.chat_template_kwargs={"enable_thinking": false}']
    ).policy.chat_template_kwargs == {"enable_thinking": False}
    with pytest.raises(ConfigError, match="valid dictionary"):
        apply_overrides(PipelineConfig(), ["policy.chat_template_kwargs=enable_thinking"])


def test_what_is_said_is_in_the_engines_key() -> None:
    def key(*overrides: str) -> str:
        config = apply_overrides(PipelineConfig(), list(overrides))
        return json.dumps(engine_spec(config, base_policy(config), "tiny-word"))

    assert key("policy.system_prompt=null", "policy.chat_template_kwargs={}") == key()
    told = ("policy.system_prompt=a", "policy.system_prompt=", 'policy.chat_template_kwargs={"a": 1}')
    assert len({key(), *map(key, told)}) == 4


def test_a_long_prompt_is_shown_without_its_middle() -> None:
    assert _shortened("a\nb") == r"'a\nb'"
    assert len(_shortened("x" * 5000 + "end")) < 1100
    assert _shortened("x" * 5000 + "end").endswith("end'")
