"""A training that was killed goes on from its checkpoint, and from no other's."""

import pytest
import torch
from training_fixtures import run, save_model, with_

from pipeline_lib.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("relative-correctness", {"gradient_checkpointing": True}),  # what one does when memory ran out
        ("relative-correctness", {"tokens_per_microbatch": 128}),
        ("relative-correctness", {"checkpoint_every": 3, "dpo_beta": 0.5, "kl_beta": 0.1}),
        ("rft", {"negative_clip": None, "dpo_beta": 0.5}),
    ],
)
def test_a_checkpoint_outlives_settings_that_change_no_result(model_dir, tmp_path, objective, changes):
    config = with_(objective=objective, num_epochs=2, checkpoint_every=2)

    def kill(metrics):
        if metrics["update"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model_dir, tmp_path / "killed", config=config, on_update=kill)
    again: list[float] = []
    resumed = run(
        model_dir,
        tmp_path / "killed",
        config=config.model_copy(update=changes),
        on_update=lambda metrics: again.append(metrics["update"]),
    )
    assert again[0] == 2
    whole = run(model_dir, tmp_path / "whole", config=config)
    assert resumed.last_loss == pytest.approx(whole.last_loss, rel=1e-4)


@pytest.mark.parametrize("changes", [{"dpo_beta": 0.5}, {"kl_beta": 0.2}, {"kl_alarm": 0.5}])
def test_a_checkpoint_is_refused_where_the_setting_has_an_effect(model_dir, tmp_path, changes):
    config = with_(objective="step-dpo", checkpoint_every=1)
    run(model_dir, tmp_path, config=config)
    with pytest.raises(ValueError, match="other settings or data"):
        run(model_dir, tmp_path, config=config.model_copy(update=changes))


def test_a_killed_run_resumes_to_the_same_bytes(model_dir, tmp_path):
    config = with_(num_epochs=3, checkpoint_every=2)
    whole = run(model_dir, tmp_path / "whole", config=config)

    def kill(metrics):
        if metrics["update"] == 4:  # between the checkpoints after updates 4 and 6
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model_dir, tmp_path / "killed", config=config, on_update=kill)
    again: list[float] = []
    resumed = run(
        model_dir, tmp_path / "killed", config=config, on_update=lambda metrics: again.append(metrics["update"])
    )
    assert again[0] == 4
    assert resumed == whole
    for path in sorted((tmp_path / "whole" / "out").iterdir()):
        assert path.read_bytes() == (tmp_path / "killed" / "out" / path.name).read_bytes(), path.name


def test_a_checkpoint_of_another_run_is_refused(model_dir, tmp_path):
    run(model_dir, tmp_path, config=with_(checkpoint_every=1))
    with pytest.raises(ValueError, match="other settings or data"):
        run(model_dir, tmp_path, config=with_(checkpoint_every=1), seed=1)


def test_a_half_written_checkpoint_is_not_read(tmp_path):
    (tmp_path / ".update-000003").mkdir()
    assert load_checkpoint(tmp_path, "fingerprint", {}, torch.optim.AdamW([torch.zeros(1)])) == []
