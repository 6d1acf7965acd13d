"""vLLM's engine in this process: started once, its weights changed under way, its memory lent to training.

One idea: an engine takes seconds to minutes to start, so it outlives what it samples: an adapter comes with
every request (`LoRARequest`). After every change a probe asks whether the engine answers otherwise than with
any weights before: one that still serves old weights would let a run train on the wrong policy's data, and no
later number would tell.

Other full weights start another engine. vLLM 0.32 can reload them in place, but on a CPU the output layer of
a model with tied embeddings then keeps its old ones: measured, its log-probabilities were 1.5 nats off.
"""

from __future__ import annotations

import gc
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.config.one_line import first_line
from pipeline_lib.policy.adapters import ProbeAnswers, StaleWeightsError, Weights, adapter_digest, adapter_rank
from pipeline_lib.policy.export.exported_model import write_merged
from pipeline_lib.policy.in_flight import ModelLimits
from pipeline_lib.policy.vllm_engine.engine_arguments import (
    engine_arguments,
    import_vllm,
    runs_on_cpu,
    threads_stay_settable,
)

PROBE_TOKENS = 64


class VllmEngine:
    """One `vllm.LLMEngine` that can be given other weights.

    Args:
        weights: what it starts with.
        config: dtype, context, requests decoded together, and the group `vllm`.
        lora_rank: the largest rank that is to come; 0 for none. A larger one, or another model, restarts the engine.
            Adapters that are merged, see ``policy.vllm.merge_adapters``, need no room.

    Raises:
        ConfigError: vLLM is not installed, or refuses the model or an option; one line says why.
    """

    def __init__(self, weights: Weights, config: PolicyConfig, *, lora_rank: int = 0) -> None:
        self._vllm = import_vllm(config)
        self._sampling_params = partial(
            self._vllm.SamplingParams,
            detokenize=False,
            skip_clone=True,
        )
        self._config = config
        self._engine: Any = None
        self._is_asleep = False
        self._num_adapters = 0
        self._lora: Any = None
        self._merges = runs_on_cpu(config) if config.vllm.merge_adapters is None else config.vllm.merge_adapters
        self._lora_rank = 0 if self._merges else lora_rank
        self._started_with: tuple[Path | str, str] | None = None
        self._answers = ProbeAnswers()
        self.load(weights)

    @property
    def limits(self) -> ModelLimits:
        """The longest context that it was started with, and the model's vocabulary."""
        model = self._engine.model_config
        return ModelLimits(int(model.max_model_len), int(model.get_vocab_size()))

    def load(self, weights: Weights) -> None:
        """Wakes or starts the engine if need be and makes it answer with `weights`; nothing may be running.

        Raises:
            ConfigError: see the class.
            StaleWeightsError: it still answers with other weights.
        """
        rank, merged = 0, ""
        if weights.adapter_dir is not None and self._merges:
            merged = adapter_digest(weights.adapter_dir)
        elif weights.adapter_dir is not None:
            rank = adapter_rank(weights.adapter_dir)
        wanted = weights.model_dir, merged
        if self._engine is not None and (rank > self._lora_rank or wanted != self._started_with):
            self.close()
        self._lora_rank = max(rank, self._lora_rank)
        if self._engine is None:
            self._start(weights if merged else Weights(weights.model_dir))
            self._started_with = wanted
        elif self._is_asleep:
            self._engine.wake_up()
        self._is_asleep = False
        if not self._merges:
            self._set_adapter(weights)

    def add(self, request_id: str, token_ids: list[int], *, is_watched: bool = False, **sampling: Any) -> bool:
        """Hands a request over; False if vLLM does not take it.

        Args:
            request_id: unique among those that run.
            token_ids: what is continued.
            is_watched: `step` gives its output after every pass, no longer the last one alone.
            sampling: for `vllm.SamplingParams`.
        """
        kinds = self._vllm.sampling_params.RequestOutputKind
        try:
            params = self._sampling_params(output_kind=kinds.CUMULATIVE if is_watched else kinds.FINAL_ONLY, **sampling)
            prompt = {"type": "token", "prompt_token_ids": token_ids}
            self._engine.add_request(request_id, prompt, params, lora_request=self._lora)
        except (ValueError, self._vllm.exceptions.VLLMClientError):
            return False
        return True

    def step(self) -> list[Any]:
        """One pass over all running requests; vLLM's outputs of those that have finished or are watched."""
        outputs: list[Any] = self._engine.step()
        return outputs

    def abort(self, request_ids: list[str]) -> None:
        """Forgets requests."""
        if self._engine is not None:
            self._engine.abort_request(request_ids)

    def free_for_training(self) -> None:
        """Gives a GPU's memory back until the next `load`: asleep, or ended. On a CPU there is nothing to give."""
        if not self._config.vllm.keep_while_training:
            self.close()
        elif self._engine is not None and not runs_on_cpu(self._config) and not self._is_asleep:
            self._engine.sleep(level=1)
            self._is_asleep = True

    def close(self) -> None:
        """Ends the engine and frees what it held."""
        if self._engine is not None:
            self._engine.engine_core.shutdown()
        self._engine = self._lora = None
        self._is_asleep = False
        self._vllm.distributed.cleanup_dist_env_and_memory()
        gc.collect()

    def _start(self, weights: Weights) -> None:
        """On the model, or on what it and an adapter are together; nothing is left on the disk of that."""
        given = weights.adapter_dir or weights.model_dir
        try:
            with (
                TemporaryDirectory(prefix="coppice-merged-") as folder,
                threads_stay_settable(self._config),
                warnings.catch_warnings(action="ignore"),
            ):
                model_dir = self._merged(weights, Path(folder))
                arguments = engine_arguments(self._vllm, model_dir, self._config, lora_rank=self._lora_rank)
                self._engine = self._vllm.LLMEngine.from_engine_args(arguments)
        except (AssertionError, ValueError, OSError, RuntimeError, ImportError) as error:
            self.close()
            raise ConfigError(f"policy.backend=vllm cannot start on {given}: {first_line(error)}") from error
        self._answers = ProbeAnswers()
        self._check(weights)

    def _merged(self, weights: Weights, folder: Path) -> Path | str:
        if weights.adapter_dir is None:
            return weights.model_dir
        write_merged(folder, weights.adapter_dir, weights.model_dir, self._config)
        return folder

    def _set_adapter(self, weights: Weights) -> None:
        """Sends the adapter with every request from now on; a new number each time, as vLLM keeps old ones by it."""
        if self._lora is not None:
            self._engine.remove_lora(self._lora.lora_int_id)
            self._lora = None
        if weights.adapter_dir is None:
            return
        self._num_adapters += 1
        name = f"adapter-{self._num_adapters}"
        lora = self._vllm.lora.request.LoRARequest(name, self._num_adapters, str(weights.adapter_dir))
        try:
            self._engine.add_lora(lora)
        except Exception as error:
            raise ConfigError(f"policy.backend=vllm cannot load {weights.adapter_dir}: {first_line(error)}") from error
        self._lora = lora
        self._check(weights)

    def _check(self, weights: Weights) -> None:
        """Raises if the probe is answered, bit by bit, as with weights of another digest."""
        digest, given = weights.digest(self._config.revision), weights.adapter_dir or weights.model_dir
        try:
            self._answers.check(self._probe(), digest, "vLLM", given)
        except StaleWeightsError:
            self.close()
            raise

    def _probe(self) -> bytes:
        """Log-probabilities of fixed tokens, computed alone and without the cache: equal weights, equal bits."""
        rng, limits = np.random.default_rng(0), self.limits
        ids = rng.integers(0, limits.vocab_size, min(PROBE_TOKENS, limits.context - 1)).tolist()
        self.add("probe", ids, max_tokens=1, temperature=0.0, prompt_logprobs=0)
        outputs: list[Any] = []
        while not outputs:
            outputs = self.step()
        rows = outputs[0].prompt_logprobs[1:]
        return np.array([row[token].logprob for row, token in zip(rows, ids[1:], strict=True)]).tobytes()
