"""Tiny random models with a tokenizer and chat template, written as ordinary model folders."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from pipeline_lib.policy import SampleRequest, SamplingParams

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 .\n"
TEMPLATE = (
    "{% for m in messages %}<user>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tokenizer(folder: Path, *, chat_template: str | None = TEMPLATE) -> None:
    special = ["<pad>", "<eos>", "<user>", "<assistant>"]
    vocab = {token: index for index, token in enumerate([*special, *ALPHABET])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


def write_model(folder: Path, kind: str = "qwen2", *, seed: int = 0, eos_bias: float = 0.0, **overrides: int) -> Path:
    """A random model of a few thousand weights, scaled up so that its next tokens are far from uniform."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    } | overrides
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if kind == "qwen2" else LlamaForCausalLM(LlamaConfig(**sizes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 0.5 if "embed" in name else 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def make_requests(
    count: int, *, max_new_tokens: int = 40, temperature: float = 1.0, seed: int = 0
) -> list[SampleRequest]:
    """Requests as a search makes them: groups that share a prompt, some of them also a longer prefix."""
    rng = np.random.default_rng(seed)
    requests = []
    for index in range(count):
        if index % 4 == 0:
            prompt = rng.integers(2, 42, rng.integers(8, 70)).astype(np.int32)
            path = rng.integers(2, 42, 30).astype(np.int32)
        ids = prompt if index % 4 < 2 else np.concatenate([prompt, path[: 7 * (index % 4)]])
        params = SamplingParams(max_new_tokens, temperature, 1.0 if index % 3 else 0.9)
        requests.append(SampleRequest(f"r{index}", ids, params, 1000 + index))
    return requests
