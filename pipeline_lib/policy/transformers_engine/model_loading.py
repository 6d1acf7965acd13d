"""From a model folder to a model ready to be sampled: safetensors only, adapter merged in."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.config.one_line import first_line
from pipeline_lib.policy.adapters import WEIGHTS_FILE
from pipeline_lib.policy.model_folders import check_folder
from pipeline_lib.policy.transformers_engine.block_attention import ATTENTION_NAME

_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


def load_model(
    model_dir: Path | str, adapter_dir: Path | str | None, config: PolicyConfig, device: torch.device
) -> torch.nn.Module:
    """The causal language model in eval mode, its adapter merged into the weights.

    Merging makes sampling as fast as the base model; it rounds in the model's own dtype.

    Args:
        model_dir: folder or hub name; full-weights training results are such folders too.
        adapter_dir: folder with `adapter_model.safetensors`, or None.
        config: dtype and hub revision are read.
        device: see `resolve_device`.

    Raises:
        ConfigError: a missing folder or file, weights in another format than safetensors, or an
            architecture with layers other than attention.
    """
    check_folder(model_dir, "model", holds="config.json")
    transformers_logging.disable_progress_bar()  # a bar per load would tear the run's own apart
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_dir,
            revision=config.revision or "main",
            dtype=getattr(torch, config.dtype),
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.model={model_dir}: cannot load it: {first_line(error)}") from error
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _ATTENTION_LAYERS
    if kinds:
        raise ConfigError(f"policy.model={model_dir}: layers of kind {sorted(kinds)[0]} have no key-value cache here")
    if adapter_dir is not None:
        check_folder(Path(adapter_dir), "adapter", holds=WEIGHTS_FILE)
        model = PeftModel.from_pretrained(model, str(adapter_dir), torch_device="cpu").merge_and_unload()
    ready: torch.nn.Module = model.to(device).eval().requires_grad_(False)
    return ready
