"""From a model folder to a model ready to be sampled: safetensors only, adapter merged in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.policy.transformers_engine.kv_cache import ATTENTION_NAME

_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


def resolve_device(name: str) -> torch.device:
    """The torch device for `policy.device`; "auto" takes CUDA when there is one.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"policy.device={name}: torch sees no CUDA device; use auto or cpu")
    return device


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
    _check_folder(model_dir, "model", "config.json")
    transformers_logging.disable_progress_bar()  # a bar per load would tear the run's own apart
    try:
        model = AutoModelForCausalLM.from_pretrained(
            model_dir,
            revision=config.revision or "main",
            dtype=getattr(torch, config.dtype),
            attn_implementation=ATTENTION_NAME,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.model={model_dir}: cannot load it: {_first_line(error)}") from error
    kinds = set(getattr(model.config, "layer_types", None) or ()) - _ATTENTION_LAYERS
    if kinds:
        raise ConfigError(f"policy.model={model_dir}: layers of kind {sorted(kinds)[0]} have no key-value cache here")
    if adapter_dir is not None:
        _check_folder(adapter_dir, "adapter", "adapter_model.safetensors")
        model = PeftModel.from_pretrained(model, str(adapter_dir), torch_device="cpu").merge_and_unload()
    ready: torch.nn.Module = model.to(device).eval().requires_grad_(False)
    return ready


def load_tokenizer(model_dir: Path | str, config: PolicyConfig) -> Any:
    """The tokenizer beside the model.

    Raises:
        ConfigError: there is none that can be loaded.
    """
    transformers_logging.disable_progress_bar()  # the trainer's bar per load would tear the run's own apart
    try:
        return AutoTokenizer.from_pretrained(model_dir, revision=config.revision or "main")
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.model={model_dir}: cannot load its tokenizer: {_first_line(error)}") from error


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ids that end an answer: those of the model's generation config and the tokenizer's own."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    found = set(ids) if isinstance(ids, list | tuple) else {ids}
    return frozenset(int(i) for i in found | {tokenizer.eos_token_id} if i is not None)


def _check_folder(folder: Path | str, kind: str, needed: str) -> None:
    """A path-like name must be a folder that holds `needed`; anything else is left to the hub."""
    path = Path(folder)
    looks_local = isinstance(folder, Path) or path.exists() or path.is_absolute() or str(folder).startswith(".")
    if (looks_local or kind == "adapter") and not (path / needed).is_file():
        what = f"has no {needed}" if path.is_dir() else "does not exist"
        raise ConfigError(f"the {kind} folder {path} {what}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
