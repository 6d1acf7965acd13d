import re
from pathlib import Path

import pytest

from deployments.presets import preset, preset_names
from pipeline_lib.config import PipelineConfig, ScoreConfig, TrainConfig
from pipeline_lib.policy.scripted import CharCodec
from pipeline_lib.problems.formats import format_of
from pipeline_lib.search import split_steps

ROOM_FOR_PROMPTS = 512  # the longest question of GSM8K's train split has 1,000 characters


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_named_as_it_is_called_and_within_all_bounds(name: str) -> None:
    config = preset(name)
    assert config.preset == name
    assert PipelineConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("name", preset_names())
def test_answers_and_prompts_fit_into_the_context(name: str) -> None:
    config = preset(name)
    longest = max(config.search.max_new_tokens, config.evaluation.max_new_tokens)
    assert longest + ROOM_FOR_PROMPTS <= config.policy.max_context_tokens


@pytest.mark.parametrize("name", ["math", "math-24gb", "math-thinking"])
def test_a_drawing_in_a_math_question_fits_beside_its_answer(name: str) -> None:
    config = preset(name)
    assert config.policy.max_context_tokens - config.search.max_new_tokens >= 3000


@pytest.mark.parametrize("name", preset_names())
def test_the_training_dataset_is_measured_and_transfer_beside_it(name: str) -> None:
    config = preset(name)
    names = [dataset.partition("=")[0] for dataset in config.evaluation.datasets]
    assert config.problems.dataset in names
    assert len(names) > 1 or name == "smollm2"  # its transfer is measured before and after: minutes an iteration
    assert all(format_of(dataset) for dataset in names)


def test_the_literal_setting_is_tiny_but_for_what_the_paper_says() -> None:
    config, tiny = preset("tiny-literal"), preset("tiny")
    assert (config.score.baseline, config.score.scaling) == ("others", "linear")
    assert (config.train.negative_clip, config.train.kl_weight) == (None, 0.1)
    changed = {"preset": "tiny", "score": tiny.score, "train": tiny.train}
    assert config.model_copy(update=changed) == tiny
    assert config.train.value_weight == 0
    same = {name: getattr(tiny.train, name) for name in ("negative_clip", "value_weight", "kl_beta")}
    assert config.train.model_copy(update=same) == tiny.train


def test_only_the_literal_setting_is_called_the_papers() -> None:
    fields = {**TrainConfig.model_fields, **ScoreConfig.model_fields}
    own = {name for name, field in fields.items() if re.search("paper'?s own|the paper's", field.description or "")}
    assert own == set()
    assert "literal" in (TrainConfig.model_fields["objective"].description or "")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_in_the_table_of_presets(name: str) -> None:
    page = (Path(__file__).resolve().parents[1] / "deployments" / "README.md").read_text(encoding="utf-8")
    assert any(f"`{name}`" in line for line in page.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("name", ["gsm8k-thinking", "math-thinking"])
def test_thoughts_have_room_and_are_cut_where_they_pause(name: str) -> None:
    config, codec = preset(name), CharCodec()
    thoughts = "\n\n".join(f"Thought {index}: the rest is 7,\nso half is 3.5." for index in range(100))
    answer = codec.encode(f"<think>{thoughts}</think>\n\nIt is \\boxed{{7}}.")
    steps = split_steps(answer, codec, config.search.step_delimiter, markdown=config.search.markdown_steps)
    assert len(steps) == 101
    assert len(steps) < config.search.max_depth
    assert config.train.tokens_per_microbatch >= config.search.max_new_tokens + ROOM_FOR_PROMPTS


def test_the_paper_size() -> None:
    for name in ("gsm8k", "math"):
        config = preset(name)
        assert (config.problems.num_problems, config.num_iterations, config.train.full_finetuning) == (2000, 4, False)
