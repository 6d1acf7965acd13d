import json
import math
import shutil

import numpy as np
import pytest
import torch
from benchmarks.per_step_training import per_step_gradients, per_step_rows
from peft import PeftModel
from safetensors.numpy import load_file
from training_fixtures import CONFIG, CPU, EOS, examples_for, run, save_model, with_
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MambaConfig

from deployments.preflight.findings import Findings
from deployments.preflight.model_checks import check_model
from pipeline_lib.config import ConfigError, PipelineConfig, Settings, apply_overrides
from pipeline_lib.policy.adapters import adapter_digest
from pipeline_lib.seeding import derive_generator
from pipeline_lib.training.batches.batching import plan_updates
from pipeline_lib.training.gradients import add_gradients, log_probs_of
from pipeline_lib.training.loop import pack_examples
from pipeline_lib.training.open_policy import load_policy, new_adapters
from pipeline_lib.training.result import MIN_CHANGE
from pipeline_lib.training.trained_policy import TrainedPolicy
from tasks.train import check_training


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(model_dir, tmp_path_factory):
    """What an iteration before left behind, far enough from the base to tell the two apart."""
    folder = tmp_path_factory.mktemp("previous")
    run(model_dir, folder, config=with_(learning_rate=1e-2, warmup_updates=0))
    return folder / "out"


def gradients_of(trained):
    return torch.cat([parameter.grad.flatten() for parameter in trained.trainable().values()])


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("full_finetuning", [False, True])
def test_packed_gradients_equal_those_of_one_row_per_step(tmp_path, kind, full_finetuning):
    config = with_(full_finetuning=full_finetuning, kl_beta=0.3, tokens_per_microbatch=256)
    examples = examples_for(config)
    trained = load_policy(save_model(tmp_path, kind=kind), None, config, CPU, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained.trainable().values():  # away from the reference, where the KL has a gradient
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    loss, per_step_tokens = per_step_gradients(trained, per_step_rows(examples, eos_token_id=EOS), config)
    expected = gradients_of(trained)
    for parameter in trained.trainable().values():
        parameter.grad = None
    trees = pack_examples(examples, config, eos_token_id=EOS)
    (batches,) = plan_updates(
        trees, np.arange(len(trees)), tokens_per_update=10**6, tokens_per_microbatch=256, break_even_tokens=768
    )
    metrics = add_gradients(trained, batches, config)
    assert len(batches) > 1
    assert metrics["kl"] > 1e-3
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert float((gradients_of(trained) - expected).norm() / expected.norm()) < 1e-5
    assert metrics["num_tokens"] < per_step_tokens / 2


@pytest.mark.parametrize("full_finetuning", [False, True])
def test_checkpointed_layers_are_computed_again_and_give_the_same_gradients(model_dir, full_finetuning):
    gradients, kept = [], []
    for checkpointing in (False, True):
        config = with_(full_finetuning=full_finetuning, gradient_checkpointing=checkpointing)
        trained = load_policy(model_dir, None, config, CPU, seed=0)
        calls = []
        trained.model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        trees = pack_examples(examples_for(config), config, eos_token_id=EOS)
        (batches,) = plan_updates(
            trees, np.arange(len(trees)), tokens_per_update=10**6, tokens_per_microbatch=10**6, break_even_tokens=768
        )
        add_gradients(trained, batches, config)
        gradients.append(gradients_of(trained))
        kept.append(len(calls))
    assert kept[1] == kept[0] + len(batches)  # the reference, the forward pass, and that again while going backward
    assert torch.equal(*gradients)


@pytest.mark.parametrize("objective", ["relative-correctness", "rft", "step-dpo"])
def test_every_objective_lowers_its_loss(model_dir, tmp_path, objective):
    config = with_(objective=objective, num_epochs=4, negative_clip=0, learning_rate=5e-3, kl_alarm=1e9)
    result = run(model_dir, tmp_path, config=config)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert result.last_kl > 0
    assert result.num_tokens / result.num_unique_tokens <= 1.15
    assert result.num_updates == len(result.history)


@pytest.mark.parametrize("objective", ["relative-correctness", "rft", "step-dpo"])
def test_the_kl_term_is_added_to_every_objective_by_the_same_rule(model_dir, objective):
    config = with_(objective=objective)
    trained = load_policy(model_dir, None, config, CPU, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    batches = one_update(config)
    plain, own, doubled = (
        add_gradients(trained, batches, config.model_copy(update={"kl_beta": beta})) for beta in (0, None, 0.2)
    )
    assert own["kl"] > 1e-3
    assert doubled["loss"] == pytest.approx(plain["loss"] + 0.2 * own["kl"], rel=1e-5)
    published = 0.1 if objective == "relative-correctness" else 0
    assert own["loss"] == pytest.approx(plain["loss"] + published * own["kl"], rel=1e-5)
    if objective == "rft":
        assert own["loss"] == pytest.approx(own["nll"], rel=1e-5)
    assert ("nll_negative" in own) == (objective == "relative-correctness")


def learning_rates(model_dir, folder, **changes):
    return [update["learning_rate"] for update in run(model_dir, folder, config=with_(**changes)).history]


def test_a_warm_up_is_at_most_a_tenth_of_the_updates(model_dir, tmp_path):
    few = learning_rates(model_dir, tmp_path / "few", tokens_per_update=4096, num_epochs=2)
    assert few == [1e-3, 1e-3]  # inside a warm-up of five: a fifth and two fifths of that
    some = learning_rates(model_dir, tmp_path / "some", num_epochs=10)
    assert 20 <= len(some) < 30
    assert some[:3] == pytest.approx([5e-4, 1e-3, 1e-3])
    longest = learning_rates(model_dir, tmp_path / "long", num_epochs=10, warmup_updates=1)
    assert set(longest) == {1e-3}


def test_a_rate_that_falls_is_spent_with_the_last_update(model_dir, tmp_path):
    rates = learning_rates(model_dir, tmp_path, num_epochs=10, learning_rate_schedule="linear")
    num = len(rates)
    assert rates[0] == pytest.approx(5e-4)  # a warm-up of two, as above
    assert rates[1:] == pytest.approx([1e-3] + [1e-3 * (num - number) / (num - 2) for number in range(2, num)])
    assert 0 < rates[-1] < 1e-4


def test_a_training_that_could_not_teach_says_so(model_dir, tmp_path):
    idle = run(model_dir, tmp_path / "idle", config=with_(learning_rate=1e-7, kl_beta=0))
    assert 0 < idle.policy_change < MIN_CHANGE
    assert (idle.metrics()["train/taught"], idle.metrics()["train/policy_change"]) == (0, idle.policy_change)
    taught = run(model_dir, tmp_path / "taught", config=with_(learning_rate=5e-3, num_epochs=2, kl_beta=0))
    assert taught.policy_change > MIN_CHANGE
    assert taught.metrics()["train/taught"] == 1


def test_the_change_of_the_policy_is_that_of_its_own_steps(model_dir, tmp_path):
    config = with_(learning_rate=5e-3)
    result = run(model_dir, tmp_path, config=config)
    trees = pack_examples(examples_for(config), config, eos_token_id=EOS)
    order = derive_generator(0, "epoch", 0).permutation(len(trees))
    limits = {"tokens_per_update": 512, "tokens_per_microbatch": 512, "break_even_tokens": 6 * 32}
    first = next(plan_updates(trees, order, **limits))
    before, after = (
        torch.cat(log_probs_of(load_policy(model_dir, previous, config, CPU, seed=0), first))
        for previous in (None, tmp_path / "out")
    )
    assert result.policy_change == pytest.approx(float((after - before).abs().mean()), rel=1e-4)


def test_the_same_steps_stand_behind_an_update_whatever_fits_a_forward_pass(model_dir, tmp_path):
    large = {"tokens_per_update": 1024, "num_epochs": 2}
    one, many = (
        run(model_dir, tmp_path / str(size), config=with_(tokens_per_microbatch=size, **large)) for size in (1024, 128)
    )
    assert many.num_tokens > one.num_tokens  # trees were cut: prefixes are computed again
    for a, b in zip(one.history, many.history, strict=True):
        for name in ("loss", "nll", "kl", "grad_norm", "learning_rate", "num_scored_tokens"):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), name
    assert many.policy_change == pytest.approx(one.policy_change, rel=1e-4)


def test_the_reference_of_a_later_iteration_is_the_previous_policy(model_dir, adapter, tmp_path):
    later = run(model_dir, tmp_path, previous=adapter)
    assert later.history[0]["kl"] == pytest.approx(0, abs=1e-6)  # the base would be 0.01 and more away
    previous, now = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "out"))
    assert previous.keys() == now.keys()
    assert any((previous[name] != now[name]).any() for name in now)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "random"


def start_of(model_dir, folder, adapter, **changes):
    """The first update's KL, and the new policy's weights."""
    result = run(model_dir, folder, previous=adapter, config=with_(learning_rate=1e-9, **changes))
    return result.history[0]["kl"], load_file(folder / "out" / "adapter_model.safetensors")


def test_training_may_start_from_the_base_and_be_held_near_it_instead(model_dir, adapter, tmp_path):
    previous = load_file(adapter / "adapter_model.safetensors")
    kls, kept = {}, {}
    for start in ("previous", "base"):
        for reference in ("previous", "base"):
            folder = tmp_path / start / reference
            kl, weights = start_of(model_dir, folder, adapter, start=start, reference=reference)
            kls[start, reference] = kl
            kept[start, reference] = max(float(np.abs(weights[name] - previous[name]).max()) for name in weights)
    assert [kls["previous", "previous"], kls["base", "base"]] == pytest.approx([0, 0], abs=1e-6)
    assert min(kls["previous", "base"], kls["base", "previous"]) > 1e-3
    assert max(kept["previous", "base"], kept["previous", "previous"]) < 1e-5 < 1e-2 < kept["base", "previous"]


@pytest.mark.parametrize(("start", "reference"), [("base", "previous"), ("previous", "base")])
def test_full_weights_start_and_compare_where_they_are_told(model_dir, tmp_path, start, reference):
    full = {"full_finetuning": True, "warmup_updates": 0}
    run(model_dir, tmp_path / "1", config=with_(**full, learning_rate=1e-2))
    second = with_(**full, start=start, reference=reference)
    assert run(model_dir, tmp_path / "2", config=second, previous=tmp_path / "1" / "out").history[0]["kl"] > 1e-3


def test_the_kl_on_paths_changes_the_kl_and_not_the_likelihood(model_dir, adapter):
    found = {}
    for kl_on in ("scored", "path"):
        config = with_(kl_on=kl_on, reference="base")
        found[kl_on] = add_gradients(load_policy(model_dir, adapter, config, CPU, seed=0), one_update(config), config)
    scored, path = found["scored"], found["path"]
    assert path["kl"] != pytest.approx(scored["kl"], rel=1e-3)
    assert path["nll"] == pytest.approx(scored["nll"], rel=1e-5)
    assert path["num_scored_tokens"] == scored["num_scored_tokens"]
    assert path["loss"] - 0.1 * path["kl"] == pytest.approx(scored["loss"] - 0.1 * scored["kl"], rel=1e-4, abs=1e-6)


def test_a_clipped_ratio_bounds_what_negatives_do(model_dir, tmp_path):
    hard = {"negative_clip": None, "num_epochs": 8, "learning_rate": 5e-3, "kl_beta": 0, "kl_alarm": 1e9}
    plain = run(model_dir, tmp_path / "plain", config=with_(**hard))
    clipped = run(model_dir, tmp_path / "clipped", config=with_(**hard, ratio_clip=0.2))
    assert clipped.history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert clipped.history[-1]["nll"] < plain.history[-1]["nll"]
    assert 0 < clipped.negatives_pushed < plain.negatives_pushed
    assert clipped.policy_change < plain.policy_change
    assert clipped.last_loss < clipped.history[0]["loss"]


def test_the_scale_of_an_adapter_may_go_by_the_root_of_its_rank(model_dir, tmp_path):
    # alpha 32 and rank 4: 8 and 16 times the product
    config = with_(learning_rate=1e-2, warmup_updates=0, lora_scaling="sqrt_rank")
    run(model_dir, tmp_path, config=config)
    folder = tmp_path / "out"
    assert json.loads((folder / "adapter_config.json").read_text())["use_rslora"] is True
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    adapted = PeftModel.from_pretrained(base, folder)
    layer = next(m for m in adapted.modules() if isinstance(getattr(m, "scaling", None), dict))
    assert layer.scaling == {"default": 16.0}
    digest, saved = adapter_digest(folder), folder / "adapter_config.json"
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    (plain / saved.name).write_text(saved.read_text().replace('"use_rslora": true', '"use_rslora": false'))
    assert adapter_digest(plain) != digest
    with pytest.raises(ValueError, match="its scaling is sqrt_rank and train"):
        run(model_dir, tmp_path / "next", previous=folder)
    again = run(model_dir, tmp_path / "again", config=config, previous=folder)
    assert again.history[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_adapters_on_attention_alone_are_fewer(model_dir, tmp_path):
    run(model_dir, tmp_path, config=with_(lora_targets="attention"))
    names = {name.split(".")[-3] for name in load_file(tmp_path / "out" / "adapter_model.safetensors")}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_layers_in_attention_are_found_whatever_they_are_called_and_made_of():
    base = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=32, vocab_size=64))
    adapted = new_adapters(base, with_(lora_targets="attention"), seed=0)
    names = {name.partition(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert {name.partition(".h.")[2] for name in names} == {
        f"{layer}.attn.{part}" for layer in (0, 1) for part in ("c_attn", "c_proj")
    }


def test_a_model_without_attention_is_refused_before_a_search(tmp_path):
    MambaConfig(num_hidden_layers=1, hidden_size=16, vocab_size=64, state_size=4).save_pretrained(tmp_path)
    config = apply_overrides(PipelineConfig(), [f"policy.model={tmp_path}", "train.lora_targets=attention"])
    for refuses in (lambda: check_training(config), lambda: check_model(config, Settings(), Findings())):
        with pytest.raises(
            ConfigError, match=r"(has no attention that takes a mask|take no mask).*; take (a|another) "
        ):
            refuses()
    with pytest.raises(ConfigError, match=r"Sequential has no linear layer in .*; set train.lora_targets=all$"):
        new_adapters(torch.nn.Sequential(torch.nn.Linear(2, 2)), config.train, seed=0)


def test_without_a_kl_the_reference_is_skipped(model_dir, tmp_path):
    result = run(model_dir, tmp_path, config=with_(kl_beta=0))
    assert "kl" not in result.history[0]
    assert math.isnan(result.mean_kl)
    assert "train/kl" not in result.metrics()


def test_the_alarm_ends_training_early(model_dir, tmp_path):
    config = with_(learning_rate=0.05, warmup_updates=0, num_epochs=5, kl_alarm=0.01)
    result = run(model_dir, tmp_path, config=config)
    assert result.stopped_by_kl_alarm
    assert 1 < result.num_updates < 10
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_full_finetuning_goes_on_from_its_own_weights(model_dir, tmp_path):
    config = with_(full_finetuning=True, warmup_updates=0)
    run(model_dir, tmp_path / "1", config=config)
    second = run(model_dir, tmp_path / "2", config=config, previous=tmp_path / "1" / "out")
    assert second.history[0]["kl"] == pytest.approx(0, abs=1e-6)
    first, now = (load_file(tmp_path / step / "out" / "model.safetensors") for step in "12")
    assert any((first[name] != now[name]).any() for name in now)


def one_update(config=CONFIG):
    trees = pack_examples(examples_for(config), config, eos_token_id=EOS)
    order = np.arange(len(trees))
    (batches,) = plan_updates(trees, order, tokens_per_update=4096, tokens_per_microbatch=4096, break_even_tokens=768)
    return batches


def test_bfloat16_computes_close_to_float32(model_dir):
    exact, rounded = (
        add_gradients(
            load_policy(model_dir, None, CONFIG, CPU.model_copy(update={"dtype": dtype}), seed=0),
            one_update(),
            CONFIG,
        )
        for dtype in ("float32", "bfloat16")
    )
    assert rounded["nll"] == pytest.approx(exact["nll"], rel=0.02)


def test_the_adapter_is_a_plain_peft_folder_that_holds_what_was_learnt(model_dir, tmp_path):
    config = with_(objective="rft", num_epochs=5, learning_rate=5e-3)
    run(model_dir, tmp_path, config=config)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    before = add_gradients(load_policy(model_dir, None, config, CPU, seed=0), one_update(config), config)
    adapted = PeftModel.from_pretrained(base, tmp_path / "out", is_trainable=True)
    after = add_gradients(TrainedPolicy(base, adapters=adapted), one_update(config), config)
    assert after["nll"] < before["nll"] - 0.1
    assert after["kl"] > 1e-3  # the base is the reference where no previous adapter is loaded


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"full_finetuning": True}, "holds an adapter"), ({"lora_rank": 8}, "r is 4 and train.lora_rank is 8")],
)
def test_a_previous_adapter_that_does_not_fit_is_refused(model_dir, adapter, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(model_dir, tmp_path, config=with_(**changes), previous=adapter)


def test_nothing_to_train_on_is_said_clearly(model_dir, tmp_path):
    with pytest.raises(ValueError, match="no step to train on"):
        run(model_dir, tmp_path, count=0)


def test_the_order_of_an_epoch_comes_from_the_seed(model_dir, tmp_path):
    orders = [derive_generator(0, "epoch", epoch).permutation(6).tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    first, second = (run(model_dir, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert first.history[-1]["loss"] != second.history[-1]["loss"]
