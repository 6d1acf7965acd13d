"""Opens the policy to be trained: base weights, the trained adapter, the frozen reference.

Whatever model is named, a small random tree tells whether it can be trained on packed trees at all, see
`architectures.packing_check`; a model that would be trained wrongly is refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from pipeline_lib.config import ConfigError, PolicyConfig, TrainConfig
from pipeline_lib.policy.devices import resolve_device
from pipeline_lib.seeding import derive_seed
from pipeline_lib.training.architectures.layers import attention_for
from pipeline_lib.training.architectures.packing_check import check_packable
from pipeline_lib.training.architectures.tree_attention import BLOCKED
from pipeline_lib.training.trained_policy import REFERENCE, TRAINED, TrainedPolicy

ADAPTER_CONFIG = "adapter_config.json"
LINEAR = (torch.nn.Linear, Conv1D)  # the latter is what GPT-2 has in place of the former
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of mallopt(3)
LARGE_TENSOR_BYTES = 4 << 20
KEPT_BYTES = 32 << 20  # where glibc's own threshold ends up by itself


def load_policy(
    model_dir: Path | str,
    previous_adapter: Path | None,
    config: TrainConfig,
    policy: PolicyConfig,
    *,
    seed: int,
) -> TrainedPolicy:
    """The base with what is to be trained on it, starting from the previous iteration's policy or from the base.

    Args:
        model_dir: base model folder, or hub name.
        previous_adapter: what the iteration before wrote; None in iteration 1.
        config: LoRA's rank and scale, or full fine-tuning; where training starts, and what it is compared with.
        policy: device, dtype and revision.
        seed: draws the adapter's first weights.

    Raises:
        ValueError: the previous adapter does not fit the configuration.
        ConfigError: the model cannot be trained on packed trees; one line says why.
    """
    device = resolve_device(policy.device)
    dtype = torch.bfloat16 if policy.dtype == "bfloat16" else torch.float32
    needs_reference = config.needs_reference
    _check_previous(previous_adapter, config)
    start = previous_adapter if config.start == "previous" else None
    reference = previous_adapter if config.reference == "previous" and needs_reference else None
    if config.full_finetuning:
        model = _load(start or model_dir, policy, torch.float32, device)  # bfloat16 would swallow small updates
        compared = reference or model_dir
        frozen = _load(compared, policy, dtype, device).requires_grad_(False) if needs_reference else None
        trained = TrainedPolicy(model, frozen=frozen, dtype=dtype)
    else:
        base = _load(model_dir, policy, dtype, device)
        adapters = _attach_adapters(base, start, reference, config, seed)
        _leave_inputs(adapters)
        trained = TrainedPolicy(base, adapters=adapters, has_previous=reference is not None, dtype=dtype)
    if config.gradient_checkpointing:
        _checkpoint_layers(trained.model)
    _check_packable(trained)
    return trained


def _check_packable(trained: TrainedPolicy) -> None:
    """Raises ConfigError where the policy cannot be trained on packed trees, by blocks of them or whole rows."""
    attend_by_blocks(trained)
    try:
        check_packable(trained)
    except ConfigError:
        if not trained.attends_by_blocks:
            raise
        attend_by_blocks(trained, False)
        check_packable(trained)


def attend_by_blocks(trained: TrainedPolicy, whether: bool = True) -> None:
    """On a CPU lets a model's attention compute what tokens see and little more, see `tree_attention`.

    Without an effect on models that need an attention of their own. On a GPU it was not measured.

    Args:
        trained: the policy; its reference follows.
        whether: False goes back to whole rows.
    """
    before, after = ("sdpa", BLOCKED) if whether else (BLOCKED, "sdpa")
    for model in filter(None, (trained.model, trained.frozen)):
        if model.config._attn_implementation == before and trained.device.type == "cpu":
            model.set_attn_implementation(after)


@contextlib.contextmanager
def large_tensors_given_back(device: torch.device) -> Iterator[None]:
    """Lets glibc return a large tensor's memory to the system as soon as it is freed; does nothing elsewhere.

    It keeps up to 32 MB of each for later, in holes that the next tensors rarely fit: 0.6 of the 2.8 GB that training
    a model of 95 million weights took. What is smaller than `LARGE_TENSOR_BYTES` it may keep: where every tensor of a
    small model went back, clearing pages was a quarter of the time. Afterwards it keeps all again: an engine in this
    process takes tensors of the same size over and over.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt if device.type == "cpu" else None
    except (OSError, AttributeError):
        mallopt = None
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, LARGE_TENSOR_BYTES)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES)


def _load(source: Path | str, policy: PolicyConfig, dtype: torch.dtype, device: torch.device) -> Any:
    revision = None if Path(source).is_dir() else policy.revision
    own: dict[str, Any] = {"revision": revision, "trust_remote_code": policy.trust_remote_code}
    layout = AutoConfig.from_pretrained(source, **own).get_text_config()
    with needs_masks(policy):
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation=attention_for(layout), use_safetensors=True, **own
        )
    return only_language_model(model.to(device))


def only_language_model(model: Any) -> Any:
    """The model with the weights frozen that lie outside its language model, as towers for images or sound do."""
    if is_wrapped(model):
        parts = (model.get_decoder(), model.get_output_embeddings())
        inside = {id(weight) for part in parts for weight in part.parameters()}
        for weight in model.parameters():
            weight.requires_grad_(id(weight) in inside)
    return model


def is_wrapped(model: Any) -> bool:
    """Whether a language model is but a part of it."""
    get_decoder = getattr(model, "get_decoder", None)  # a model's own code may have none
    return get_decoder is not None and get_decoder() is not model.base_model


@contextlib.contextmanager
def needs_masks(policy: PolicyConfig) -> Iterator[None]:
    """Around the making of a model: one without the attention that takes a tree's mask is refused in one line.

    Args:
        policy: whose model it is.

    Raises:
        ConfigError: it has none.
    """
    try:
        yield
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        raise ConfigError(
            f"policy.model={policy.model}: {str(error).partition(' ')[0]} has no attention that takes a mask, which "
            "training on trees needs; take another model"
        ) from None


def _attach_adapters(
    base: Any, start: Path | None, reference: Path | None, config: TrainConfig, seed: int
) -> PeftModel:
    """The base with the adapter to be trained, and with the reference's where that is not the base."""
    if start is None:
        adapters = new_adapters(base, config, seed=seed)
    else:
        adapters = PeftModel.from_pretrained(base, start, adapter_name=TRAINED, is_trainable=True)
    if reference is not None:
        adapters.load_adapter(reference, REFERENCE, is_trainable=False)
        adapters.set_adapter(TRAINED)
    return adapters


def new_adapters(base: Any, config: TrainConfig, *, seed: int) -> PeftModel:
    """The base with an untrained LoRA adapter on its linear layers, see ``train.lora_targets``.

    The adapter adds ``lora_alpha / r`` times the product of its two matrices; with ``lora_scaling=sqrt_rank`` it is
    ``lora_alpha / sqrt(r)`` times.

    Source: Hu et al. 2021 (arXiv 2106.09685); the root is that of rsLoRA, Kalajdzievski 2023 (arXiv 2312.03732).
    """
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        use_rslora=config.lora_scaling == "sqrt_rank",
        target_modules=_adapted_layers(base, config.lora_targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "lora"))
        return get_peft_model(base, lora, adapter_name=TRAINED)


def _leave_inputs(adapters: PeftModel) -> None:
    """Adapters take their inputs as they are: PEFT makes float32 of them, of which autocast makes bfloat16 again."""
    for module in adapters.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def _adapted_layers(base: Any, which: Literal["all", "attention"]) -> list[str] | str:
    """The language model's linear layers, or those that lie in an attention module, in PEFT's words.

    Ends of names say it all, unless something else beside the language model has layers of the same names.

    Raises:
        ConfigError: no layer lies in what the libraries call attention.
    """
    decoder = base.get_decoder() if is_wrapped(base) else base
    beginning = next(name for name, module in base.named_modules() if module is decoder)
    linear = [name for name, module in base.named_modules() if isinstance(module, LINEAR)]
    own = [name for name in linear if name.startswith(beginning)]
    if which == "all":
        return own if is_wrapped(base) else "all-linear"
    inside = [name for name in own if "attn" in name or "attention" in name]
    if not inside:
        raise ConfigError(
            f"train.lora_targets=attention: {type(base).__name__} has no linear layer in a module called attention; "
            "set train.lora_targets=all"
        )
    if is_wrapped(base):
        return inside
    others = [f".{name}" for name in linear if name not in inside]
    return sorted({_own_ending(name, others) for name in inside})


def _own_ending(name: str, others: Sequence[str]) -> str:
    """The shortest end of a dotted name that none of the others ends in: in GPT-2 ``c_proj`` alone says too little."""
    parts = name.split(".")
    endings = (".".join(parts[start:]) for start in reversed(range(len(parts))))
    return next(ending for ending in endings if not any(other.endswith(f".{ending}") for other in others))


def _checkpoint_layers(model: Any) -> None:
    """Each layer's activations are computed again in the backward pass; dropout, which lies inside, stays off."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # it alone: else it would not checkpoint


def _check_previous(previous: Path | None, config: TrainConfig) -> None:
    if previous is None:
        return
    path = previous / ADAPTER_CONFIG
    remedy = "keep it the same in all iterations"
    if config.full_finetuning == path.is_file():
        kind = "an adapter" if path.is_file() else "no adapter"
        raise ValueError(f"{previous} holds {kind} and train.full_finetuning is {config.full_finetuning}; {remedy}")
    if path.is_file():
        values = json.loads(path.read_text(encoding="utf-8"))
        for field, key in (("lora_rank", "r"), ("lora_alpha", "lora_alpha")):
            wanted = getattr(config, field)
            if values[key] != wanted:
                raise ValueError(f"{path}: {key} is {values[key]} and train.{field} is {wanted}; {remedy}")
        scaling = "sqrt_rank" if values.get("use_rslora") else "rank"
        if scaling != config.lora_scaling:
            raise ValueError(f"{path}: its scaling is {scaling} and train.lora_scaling {config.lora_scaling}; {remedy}")
