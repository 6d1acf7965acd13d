import pytest

from deployments.presets import preset, preset_names
from pipeline_lib.config import PipelineConfig
from pipeline_lib.problems.formats import format_of

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


@pytest.mark.parametrize("name", preset_names())
def test_the_training_dataset_is_measured_and_transfer_beside_it(name: str) -> None:
    config = preset(name)
    names = [dataset.partition("=")[0] for dataset in config.evaluation.datasets]
    assert config.problems.dataset in names
    assert len(names) > 1
    assert all(format_of(dataset) for dataset in names)


def test_the_paper_size() -> None:
    for name in ("gsm8k", "math"):
        config = preset(name)
        assert (config.problems.num_problems, config.num_iterations, config.train.full_finetuning) == (2000, 4, False)
