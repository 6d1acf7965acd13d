"""What is said around a question: seen in the prompt, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from policy_fixtures import write_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from deployments.preflight.problem_checks import _shortened
from pipeline_lib.config import ColumnsConfig, ConfigError, PipelineConfig, PolicyConfig, apply_overrides
from pipeline_lib.grading import extract_answer
from pipeline_lib.policy import FinishReason, SampleRequest, SamplingParams, sample_all
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.policy.prompting.conversation import Conversation, Shot
from pipeline_lib.policy.tokenizers import load_codec
from pipeline_lib.problems.draw import draw_shots, hold_out
from pipeline_lib.problems.formats import answer_mark
from pipeline_lib.problems.run_sets import training_pool
from pipeline_lib.problems.sources import load_problems, worked_solutions
from pipeline_lib.problems.tiny import make_problem
from tasks.runtime.engines import engine_spec, open_policy
from tasks.runtime.policies import base_policy
from tasks.runtime.prompts import (
    explored_spec,
    instruction_for,
    measure_prompts,
    problems_to_ask,
    prompt_codec,
    search_prompts,
    shots_for,
)

TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
ANSWER = "{% if add_generation_prompt %}[assistant]{% endif %}"
THINKING = "{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}"
MENTIONS = "{# enable_thinking is for others #}" + TURNS + "enable_thinking{{ m.enable_thinking }}"
DEFAULTS = "{% set enable_thinking = enable_thinking | default(true) %}{% if not enable_thinking %}<no>{% endif %}"
MARKED = "{%- generation -%}" + THINKING + "{% endgeneration %}{% for m in [] %}{% break %}{% endfor %}"
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


@pytest.mark.parametrize("asking", [THINKING, DEFAULTS, MARKED])
def test_a_template_asks_for_an_option_in_several_ways(tmp_path: Path, asking: str) -> None:
    told = codec_with(tmp_path, TURNS + ANSWER + asking, chat_template_kwargs={"enable_thinking": False})
    assert prompt(told).endswith("[assistant]<no>")


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
        (MENTIONS, {"chat_template_kwargs": {"enable_thinking": False}}, "never asks for 'enable_thinking'"),
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


# --- worked examples, and models without a chat template ------------------------------------------------------------

SHOTS = (Shot("1+1?", "#### 2"), Shot("2+2?", "#### 4"), Shot("3+3?", "#### 6"))


def test_worked_examples_are_turns_and_no_prompt_shows_its_own(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=TURNS + ANSWER)
    codec = TokenizerCodec(AutoTokenizer.from_pretrained(tmp_path), Conversation("be brief", "add", SHOTS))
    first = "[user]1+1?\nbe brief[assistant]#### 2"
    second = "[user]2+2?\nbe brief[assistant]#### 4"
    third = "[user]3+3?\nbe brief[assistant]#### 6"
    prompts = {asked: codec.template.text(codec.conversation.turns(asked)) for asked in ("5?", "1+1?", "2+2?", "3+3?")}
    assert prompts == {
        "5?": f"[system]add{first}{second}[user]5?\nbe brief[assistant]",
        "1+1?": f"[system]add{second}{third}[user]1+1?\nbe brief[assistant]",
        "2+2?": f"[system]add{first}{third}[user]2+2?\nbe brief[assistant]",
        "3+3?": f"[system]add{first}{second}[user]3+3?\nbe brief[assistant]",
    }


def test_a_base_model_is_asked_by_the_plain_template(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    codec = TokenizerCodec(tokenizer, Conversation("be brief", "you add", SHOTS[:2]))
    assert codec.template.text(codec.conversation.turns("5?")) == (
        "you add\n\nQuestion: 1+1?\nbe brief\nAnswer: #### 2\n\nQuestion: 5?\nbe brief\nAnswer:"
    )
    assert TokenizerCodec(tokenizer).encode_prompt("ab").tolist() == tokenizer.encode("Question: ab\nAnswer:")
    with pytest.raises(ConfigError, match="never asks for 'enable_thinking'"):
        TokenizerCodec(tokenizer, Conversation(template_options={"enable_thinking": False}))


def test_a_plain_prompt_begins_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    begin = tokenizer.convert_tokens_to_ids("<user>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<user> $A <eos>", special_tokens=[("<user>", begin), ("<eos>", tokenizer.eos_token_id)]
    )
    ids = TokenizerCodec(tokenizer).encode_prompt("ab").tolist()
    assert ids == [begin, *tokenizer.encode("Question: ab\nAnswer:", add_special_tokens=False)]


def test_answers_to_plain_prompts_end_where_the_next_question_begins(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, chat_template=None)
    plain = load_codec(tmp_path, PolicyConfig(stop=("User",)))
    assert plain.stop.strings == ("User", "\nQuestion:")
    assert plain.stop.first_end("#### 2\n\nQuestion: 1+1?") == len("#### 2")
    write_tokenizer(tmp_path)
    assert load_codec(tmp_path, PolicyConfig()).stop.strings == ()


def file_config(folder: Path, rows: list[dict[str, str]], *overrides: str) -> PipelineConfig:
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        asked = [row | {"question": f"{row['question']} {split}"} for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, asked)))
    data = [f"problems.path={folder}", "problems.num_validation=3", f"evaluation.datasets=file={folder}"]
    return apply_overrides(PipelineConfig(), ["problems.dataset=file", *data, *overrides])


ROWS = [{"question": f"{n}+1?", "answer": f"{n}+1={n + 1}\n#### {n + 1}"} for n in range(9)]


def test_examples_come_from_the_train_split_and_are_never_held_out(tmp_path: Path) -> None:
    config = file_config(tmp_path, ROWS, "policy.num_shots=5")
    shots = shots_for(config)
    pool = training_pool(config)
    held_out = hold_out(pool, 3, seed=config.problems.validation_seed)
    assert {shot.question for shot in shots} == {problem.question for problem in pool} - {p.question for p in held_out}
    assert all(shot.question.endswith("train") for shot in shots)
    assert all(shot.solution == f"{(q := shot.question[:3])}={int(q[0]) + 1}\n#### {int(q[0]) + 1}" for shot in shots)
    assert shots_for(config.model_copy(update={"seed": 7})) == shots
    with pytest.raises(ConfigError, match=r"^policy\.num_shots=6: file/train has 6 problems that are not held out"):
        shots_for(apply_overrides(config, ["policy.num_shots=6"]))
    assert shots_for(apply_overrides(config, ["policy.num_shots=0"])) == ()


@pytest.mark.parametrize(
    ("dataset", "row", "solution"),
    [
        ("file", {"answer": "5"}, r"\boxed{5}"),
        ("gsm8k", {"answer": "2+3=<<2+3=5>>5 pens.\n#### 5"}, "2+3=5 pens.\n#### 5"),
        ("math", {"problem": "?", "solution": r"It is $\boxed{5}$."}, r"It is $\boxed{5}$."),
        ("math", {"problem": "?", "solution": r"So $\boxed{5}$.", "answer": "5"}, r"So $\boxed{5}$."),
        ("math", {"problem": "?", "answer": "5"}, r"\boxed{5}"),
    ],
)
def test_an_example_is_solved_as_its_row_is(tmp_path: Path, dataset: str, row: dict[str, str], solution: str) -> None:
    path = tmp_path / "train.jsonl"
    numbered = [{"question": f"{n}?", **row, **({"problem": f"{n}?"} if "problem" in row else {})} for n in range(4)]
    path.write_text("\n".join(map(json.dumps, [{"question": "no answer"}, *numbered])))
    pool = load_problems(dataset, "train", path=path, extract_gold=extract_answer)
    columns = ColumnsConfig()
    mark = answer_mark(dataset, "")
    assert worked_solutions(pool[1:3], path=path, columns=columns, mark=mark) == [solution] * 2


def test_generated_problems_are_solved_step_by_step() -> None:
    shots = shots_for(apply_overrides(PipelineConfig(), ["policy.num_shots=2"]))
    assert [len(shots), *("####" in shot.solution for shot in shots)] == [3, True, True, True]
    assert all("\n" in shot.solution for shot in shots)


@pytest.mark.parametrize("dataset", ["tiny-arithmetic", "tiny-algebra"])
def test_examples_are_of_as_many_levels_as_there_are(dataset: str) -> None:
    config = apply_overrides(PipelineConfig(), [f"problems.dataset={dataset}", "policy.num_shots=3"])
    drawn = draw_shots(training_pool(config), 3, num_validation=config.problems.num_validation, validation_seed=0)
    assert len({problem.metadata["level"] for problem in drawn}) == 3
    assert [shot.question for shot in shots_for(config)[:3]] == [problem.question for problem in drawn]


def test_examples_are_of_the_levels_that_are_asked_for_in_their_order() -> None:
    asked = ["problems.dataset=tiny-arithmetic", "policy.num_shots=3", 'policy.shot_levels=["3", "1", "3"]']
    config = apply_overrides(PipelineConfig(), asked)
    policy, problems = config.policy, config.problems
    drawn = draw_shots(
        training_pool(config),
        4,
        levels=policy.shot_levels,
        num_validation=problems.num_validation,
        validation_seed=problems.validation_seed,
    )
    assert [problem.metadata["level"] for problem in drawn] == ["3", "1", "3", "3"]
    assert [shot.question for shot in shots_for(config)] == list(dict.fromkeys(problem.question for problem in drawn))
    with pytest.raises(ConfigError, match=r"policy\.shot_levels=.*3 levels for num_shots=2"):
        apply_overrides(config, ["policy.num_shots=2"])
    with pytest.raises(ConfigError, match=r"policy\.shot_levels: too few problems of level '9'.*levels: 1, 2, 3$"):
        shots_for(apply_overrides(config, ['policy.shot_levels=["3", "1", "9"]']))


def test_rollouts_are_sampled_behind_other_examples_than_they_are_trained_behind() -> None:
    asked = ["problems.dataset=tiny-arithmetic", "policy.num_shots=1", 'search.shot_levels=[["3"], ["3", "1"]]']
    config = apply_overrides(PipelineConfig(), asked)
    one, two = search_prompts(config, "tiny-arithmetic")("How many?")
    own = prompt_codec(config, "tiny-arithmetic").encode_prompt("How many?")
    assert len({one.tobytes(), two.tobytes(), own.tobytes()}) == 3
    assert len(two) > len(one)
    told = apply_overrides(config, ['search.shot_levels=[["1"], ["3", "1"]]'])
    assert explored_spec(config) != explored_spec(told)
    assert explored_spec(apply_overrides(config, ["search.shot_levels=[]"])) == {}
    longest = max(len(one), len(two)) + config.search.max_new_tokens
    small = apply_overrides(config, [f"policy.max_context_tokens={longest - 1}", "evaluation.max_new_tokens=8"])
    with pytest.raises(ConfigError, match=r"and search\.max_new_tokens=.* do not fit"):
        measure_prompts(small, problems_to_ask(small, training_pool(small), [])[:1])


def test_beside_worked_examples_every_set_is_asked_as_they_are() -> None:
    """A prompt that shows answers behind ``####`` and asks for a box would be answered in either way."""
    config = apply_overrides(PipelineConfig(), ["problems.dataset=gsm8k"])
    with_examples = apply_overrides(config, ["policy.num_shots=2"])
    assert "boxed" in instruction_for(config, "math")
    assert instruction_for(with_examples, "math") == instruction_for(config, "gsm8k")


def test_a_scripted_policy_answers_the_last_question(tmp_path: Path) -> None:
    config = apply_overrides(PipelineConfig(), ["policy.backend=scripted", "policy.num_shots=2", "search.num_shards=1"])
    problems = [make_problem("tiny-word", "train", index) for index in range(3)]
    policy = open_policy(config, base_policy(config), problems)
    prefix = policy.codec.encode("a step\n")
    ids = np.concatenate([policy.codec.encode_prompt(problems[1].question), prefix])
    found = sample_all(policy, [SampleRequest("a", ids, SamplingParams(200), 0)])["a"]
    assert found.finish_reason is FinishReason.STOP


def test_examples_are_in_the_engines_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(config: PipelineConfig) -> dict[str, object]:
        return engine_spec(config, base_policy(config), "file")

    config = file_config(tmp_path / "one", ROWS)
    other = file_config(tmp_path / "other", [row | {"answer": row["answer"] + "."} for row in ROWS])
    assert key(config) == key(other)
    told = [apply_overrides(each, ["policy.num_shots=2"]) for each in (config, other)]
    assert len({json.dumps(key(each)) for each in (config, *told)}) == 3
    shutil.copytree(TINY_BASE, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    assert key(apply_overrides(config, [f"policy.model={tmp_path / 'base'}"]))["plain_template"] == 1
    assert "plain_template" not in key(config)


def test_a_prompt_with_examples_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    config = file_config(tmp_path, ROWS, "policy.num_shots=5", "policy.max_context_tokens=300")
    with pytest.raises(ConfigError, match=r"raise it to \d+, lower policy\.num_shots, or drop the row$"):
        measure_prompts(config, problems_to_ask(config, training_pool(config), []))
