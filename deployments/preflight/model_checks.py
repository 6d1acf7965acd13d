"""Checks of the model: it loads, adapters can be attached, and sampling and training fit into the device's memory."""

from __future__ import annotations

from deployments.preflight.findings import Findings
from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.policy.model_folders import model_folder

GIB = 2**30
ADVICE = {
    "training": "lower train.tokens_per_microbatch, or set train.gradient_checkpointing, or with several GPUs "
    "train.shard_weights",
    "sampling": "lower policy.max_batch or policy.max_context_tokens",
}


def check_model(config: PipelineConfig, settings: Settings, findings: Findings) -> str:
    """The model's layout loads, its context is long enough, and it has layers that trees and adapters go with."""
    from transformers import AutoConfig

    from pipeline_lib.policy.tokenizers import refuse_own_code
    from pipeline_lib.training.architectures.layers import why_not_packed
    from pipeline_lib.training.training_memory import training_memory

    model = model_folder(config.policy.model, config.policy.revision, weights=False)
    refuse_own_code(model, config.policy)
    try:
        layout = AutoConfig.from_pretrained(model, trust_remote_code=config.policy.trust_remote_code).get_text_config()
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"policy.model={config.policy.model}: cannot read its configuration: {reason}") from None
    longest = getattr(layout, "max_position_embeddings", None)
    if longest is not None and longest < config.policy.max_context_tokens:
        raise ConfigError(
            f"policy.max_context_tokens={config.policy.max_context_tokens}, but the model was made for {longest} tokens"
        )
    hindrance = why_not_packed(layout, config.policy.max_context_tokens)
    if hindrance is not None:
        raise ConfigError(f"policy.model={config.policy.model} cannot be trained on packed trees: {hindrance}")
    trained = training_memory(model, config.train, config.policy.model_copy(update={"device": "cpu"})).num_trained
    kind = "weights" if config.train.full_finetuning else f"weights of a rank-{config.train.lora_rank} adapter"
    return f"{layout.model_type}, {layout.num_hidden_layers} layers; {trained:,} {kind} are trained"


def check_memory(config: PipelineConfig, settings: Settings, findings: Findings) -> str:
    """Sampling and training, one after the other, fit into the device's memory."""
    from pipeline_lib.policy.devices import free_memory
    from pipeline_lib.policy.transformers_engine.sampling_memory import sampling_memory
    from pipeline_lib.training.processes.launch import check_processes
    from pipeline_lib.training.training_memory import training_memory

    check_processes(config.train, config.policy)
    model = model_folder(config.policy.model, config.policy.revision, weights=False)
    training = training_memory(model, config.train, config.policy)
    parts = {"training": training.total}
    if config.policy.backend == "transformers":
        parts["sampling"] = sampling_memory(model, config.policy).total
    free, device = free_memory(config.policy.device)
    text = ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in parts.items())
    if max(parts.values()) > free:
        advice = ADVICE[max(parts, key=lambda name: parts[name])]
        raise ConfigError(f"{text}, but {device} has {free / GIB:.1f} GiB free: {advice}")
    return f"{text}, beside the libraries; {device} has {free / GIB:.1f} GiB free"
