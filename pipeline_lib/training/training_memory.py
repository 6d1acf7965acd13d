"""How much memory training will take, known before any weight is loaded.

One idea: the same loading and the same forward pass run on tensors that have shapes and no data. What autograd
would keep for the backward pass is counted, not guessed from a formula, so it holds for whatever architecture,
adapter and attention the run will use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline_lib.config import PolicyConfig, TrainConfig
from pipeline_lib.policy.devices import resolve_device
from pipeline_lib.training.architectures.layers import attention_for
from pipeline_lib.training.batches.batching import PackedBatch
from pipeline_lib.training.gradients import batch_terms
from pipeline_lib.training.log_probs import LOGITS_PER_CHUNK
from pipeline_lib.training.open_policy import attend_by_blocks, needs_masks, new_adapters, only_language_model
from pipeline_lib.training.trained_policy import TrainedPolicy

LAYERS_AT_ONCE = 2  # that FSDP holds whole: the one that computes and the next
STATES = 4  # float32 copies of a trained weight: itself, its gradient, AdamW's two averages
LOGITS_COPIES = 5  # held at once over one chunk: log-probabilities, their exponential, the reference's, two gradients


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes on the device that trains; the libraries themselves come on top.

    Args:
        weights: frozen weights, the reference's included; where weights are sharded this process's part, and what is
            held whole at a time.
        trained: trained weights in float32, their gradients and the optimizer's averages.
        activations: kept for the backward pass of one microbatch.
        logits: of one chunk of scored tokens, see `log_probs`.
        num_trained: weights that are trained, not bytes.
    """

    weights: int
    trained: int
    activations: int
    logits: int
    num_trained: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations + self.logits


def training_memory(
    model_dir: Path | str, config: TrainConfig, policy: PolicyConfig, *, scored_share: float = 1.0
) -> TrainingMemory:
    """Memory at the peak of an update whose microbatch is one row of ``train.tokens_per_microbatch`` tokens.

    Args:
        model_dir: model folder or hub name; only its configuration is read.
        config: adapter, objective, tokens.
        policy: device, dtype, revision.
        scored_share: share of the tokens that are scored, in [0, 1].
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        trained = _without_data(model_dir, config, policy)
        batch = _full_batch(config.tokens_per_microbatch, scored_share)
        kept: dict[int, int] = {}
        owned = {_storage(tensor)[0] for tensor in (*trained.model.parameters(), *trained.model.buffers())}

        def count(tensor: Tensor) -> Tensor:
            key, size = _storage(tensor)
            if key not in owned:
                kept[key] = size
            alive.append(tensor)
            return tensor

        alive: list[Tensor] = []  # an address may only be given once
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            batch_terms(trained, batch, with_reference=config.needs_reference)
        sizes = {id(p): p.numel() for p in trained.trainable().values()}
        frozen = sum(p.nbytes for p in trained.model.parameters() if id(p) not in sizes)
        layout = trained.layout
    reference = 0 if trained.frozen is None else sum(p.nbytes for p in trained.frozen.parameters())
    num_shards = config.num_processes if config.shard_weights else 1
    activations = sum(kept.values())
    if config.gradient_checkpointing:  # the input of each layer, and one layer at a time in full
        inputs = layout.num_hidden_layers * config.tokens_per_microbatch * layout.hidden_size
        activations = activations // layout.num_hidden_layers + inputs * torch.finfo(trained.dtype).bits // 8
    return TrainingMemory(
        weights=(frozen + reference) // num_shards + (_gathered_bytes(trained) if num_shards > 1 else 0),
        trained=STATES * 4 * sum(sizes.values()) // num_shards,
        activations=activations,
        logits=LOGITS_COPIES * 4 * min(LOGITS_PER_CHUNK, len(batch.targets) * layout.vocab_size),
        num_trained=sum(sizes.values()),
    )


def check_layers(model_dir: Path | str, config: TrainConfig, policy: PolicyConfig) -> None:
    """Raises ConfigError where the model lacks the layers that ``train.lora_targets`` names, or cannot be trained.

    Args:
        model_dir: model folder or hub name; only its configuration is read.
        config: the adapter.
        policy: dtype, revision.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        _without_data(model_dir, config, policy.model_copy(update={"device": "cpu"}))


def _gathered_bytes(trained: TrainedPolicy) -> int:
    """Bytes that a process gathers from the others at a time: all but the layers, and some of these."""
    ends, largest = 0, 0
    for model in filter(None, (trained.model, trained.frozen)):
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        sizes = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in layers]
        ends += sum(parameter.nbytes for parameter in model.parameters()) - sum(sizes)
        largest = max(largest, *sizes)
    return ends + LAYERS_AT_ONCE * largest


def _without_data(model_dir: Path | str, config: TrainConfig, policy: PolicyConfig) -> TrainedPolicy:
    """The policy under training as `open_policy.load_policy` makes it, its tensors being shapes."""
    revision = None if Path(model_dir).is_dir() else policy.revision
    trusted = policy.trust_remote_code
    layout = AutoConfig.from_pretrained(model_dir, revision=revision, trust_remote_code=trusted)
    device, dtype = resolve_device(policy.device), getattr(torch, policy.dtype)

    def load(dtype: torch.dtype) -> Any:
        own = {
            "dtype": dtype,
            "attn_implementation": attention_for(layout.get_text_config()),
            "trust_remote_code": trusted,
        }
        with needs_masks(policy):
            return only_language_model(AutoModelForCausalLM.from_config(layout, **own))

    with torch.device("meta"):
        if config.full_finetuning:
            frozen = load(dtype).requires_grad_(False) if config.needs_reference else None
            trained = TrainedPolicy(load(torch.float32), frozen=frozen, dtype=dtype)
        else:
            base = load(dtype)
            trained = TrainedPolicy(base, adapters=new_adapters(base, config, seed=0), dtype=dtype)
    for model in (trained.adapters or trained.model, trained.frozen):
        if model is not None:
            _place(model, device)
    attend_by_blocks(trained)
    return trained


def _place(model: nn.Module, device: torch.device) -> None:
    """Puts every tensor of a model without data on `device`, for which kernels differ; tied ones stay tied."""
    placed: dict[int, Tensor] = {}
    for module in model.modules():
        for owned in (module._parameters, module._buffers):
            for name, tensor in owned.items():
                if tensor is None:
                    continue
                if id(tensor) not in placed:
                    there = torch.empty_like(tensor, device=device)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    placed[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if is_parameter else there
                owned[name] = placed[id(tensor)]  # type: ignore[assignment]  # each dict gets back its own kind


def _full_batch(num_tokens: int, scored_share: float) -> PackedBatch:
    """One row of `num_tokens`, as wide a pass as the configuration allows."""
    positions = np.arange(num_tokens)[None]
    sources = np.arange(max(1, round(scored_share * num_tokens)))
    return PackedBatch(
        token_ids=np.zeros_like(positions),
        positions=positions,
        subtree_ends=np.full_like(positions, num_tokens),
        sources=sources,
        targets=np.zeros_like(sources),
        weights=np.ones(len(sources)),
        segments=np.zeros_like(sources),
        num_pairs=0,
        num_unique_tokens=num_tokens,
    )


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage._cdata, storage.nbytes()
