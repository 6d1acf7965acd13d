"""A random small model of each family that people bring, with the embedded base's tokenizer, as a model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline_lib.policy.model_folders import TINY_BASE

WINDOW = 24  # tokens; shorter than any prompt, so that every step looks past it
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # vLLM on a CPU has no smaller one
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SLIDING: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


def gemma3(**sizes: Any) -> Any:
    """The wrapped form: a language model beside a tower for images."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**sizes),
        vision_config=transformers.SiglipVisionConfig(**vision, image_size=28, patch_size=14),
        mm_tokens_per_image=4,
        **{
            token: number
            for number, token in enumerate(("boi_token_index", "eoi_token_index", "image_token_index"), 509)
        },
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


FAMILIES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen2-window": (transformers.Qwen2Config, {"use_sliding_window": True, "max_window_layers": 1} | SLIDING),
    "qwen3": (transformers.Qwen3Config, {}),
    "mistral": (transformers.MistralConfig, {"sliding_window": WINDOW}),
    "phi3": (transformers.Phi3Config, {"sliding_window": WINDOW}),
    "gemma2": (transformers.Gemma2Config, SLIDING | {"query_pre_attn_scalar": 32, "attn_logit_softcapping": 5.0}),
    "gemma3": (transformers.Gemma3TextConfig, SLIDING | {"query_pre_attn_scalar": 32}),
    "gemma3-wrapped": (gemma3, SLIDING | {"query_pre_attn_scalar": 32}),
    "qwen3-moe": (transformers.Qwen3MoeConfig, EXPERTS),
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4, "sliding_window": WINDOW}),
    "granite": (transformers.GraniteConfig, {"logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "cohere2": (transformers.Cohere2Config, SLIDING | {"logit_scale": 0.5}),
}


def save_family(folder: Path, family: str, *, seed: int = 0, **changes: Any) -> Path:
    """A model folder of the family, its weights drawn wide enough for the prefix to matter to every token.

    Args:
        folder: where it goes.
        family: a key of `FAMILIES`.
        seed: of the weights.
        changes: of its configuration.
    """
    make, own = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(make(**SIZES | own | changes), dtype=torch.float32)
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, 0, 0.06 if "embed" in name or "lm_head" in name else 0.2)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(TINY_BASE / name, folder / name)
    return folder
