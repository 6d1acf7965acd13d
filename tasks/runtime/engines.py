"""Which policy, and an engine that samples it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.policy.model_folders import fingerprint, model_folder, model_path
from pipeline_lib.policy.protocol import Policy, Reloadable
from pipeline_lib.problems.formats import format_of
from pipeline_lib.types import PolicyRef, Problem, Ref
from tasks.runtime.stage import open_store

if TYPE_CHECKING:
    from pipeline_lib.policy.adapters import Weights


def base_policy(config: PipelineConfig) -> PolicyRef:
    """The policy of iteration 0: the base alone."""
    policy_id = fingerprint(model_path(config.policy.model), config.policy.revision)
    return PolicyRef(policy_id=policy_id, base_model=config.policy.model, revision=config.policy.revision, iteration=0)


def trained_policy(config: PipelineConfig, trained: Ref, *, iteration: int) -> PolicyRef:
    """The policy that a training stage wrote."""
    return PolicyRef(
        policy_id=fingerprint(adapter_folder(trained)),
        base_model=config.policy.model,
        revision=config.policy.revision,
        adapter_uri=trained.uri,
        iteration=iteration,
    )


def folder_policy(config: PipelineConfig, folder: str) -> PolicyRef:
    """The base with the adapter, or the full weights, of a folder outside the store.

    Its id names both: one adapter on two bases is two policies, and an evaluation is found again by the id.
    """
    base = base_policy(config)
    return PolicyRef(
        policy_id=f"{base.policy_id}-{fingerprint(Path(folder))}",
        base_model=config.policy.model,
        revision=config.policy.revision,
        adapter_uri=folder,
        iteration=0,
    )


def adapter_folder(trained: Ref) -> Path:
    """Where a training stage put its adapter, or its full weights."""
    return open_store().open(trained) / "policy"


def policy_folder(policy: PolicyRef) -> Path | None:
    """The folder behind ``policy.adapter_uri``; None for the base. A folder outside the store is named by its path."""
    if policy.adapter_uri is None:
        return None
    inside = open_store().folder(policy.adapter_uri) / "policy"
    return inside if inside.is_dir() else Path(policy.adapter_uri)


class _Engines:
    """At most one engine is open: a model's memory is freed before the next one is loaded."""

    def __init__(self) -> None:
        self._key: tuple[str, ...] | None = None
        self._policy: Policy | None = None

    def open(self, config: PipelineConfig, policy: PolicyRef) -> Policy:
        """The engine with `policy` loaded; one that can change its weights is kept from policy to policy."""
        weights = _weights(policy, needed=config.policy.backend != "server")
        is_kept = config.policy.backend in ("vllm", "server")
        key = (config.policy.model_dump_json(), "" if is_kept else policy.policy_id)
        # What is in flight was left there by a task that failed.
        if self._policy is None or self._key != key or self._policy.num_in_flight:
            self.close()
            self._policy = _open_engine(config, weights, policy.policy_id)
            self._key = key
        elif isinstance(self._policy, Reloadable):
            self._policy.load(weights.model_dir, adapter_dir=weights.adapter_dir, policy_id=policy.policy_id)
        return self._policy

    def lend_memory(self) -> None:
        """Frees the device's memory for training; an engine that can rest is back sooner than a new one."""
        if isinstance(self._policy, Reloadable) and not self._policy.num_in_flight:
            self._policy.rest()
        else:
            self.close()

    def close(self) -> None:
        """Ends the engine."""
        policy, self._policy, self._key = self._policy, None, None
        if policy is not None:
            policy.close()


engines = _Engines()


def _weights(policy: PolicyRef, *, needed: bool) -> Weights:
    """What is behind a reference: a base with or without an adapter, or full weights of their own.

    Args:
        policy: the reference.
        needed: False where the engine has the base's weights elsewhere.
    """
    from pipeline_lib.policy.adapters import CONFIG_FILE, Weights

    folder = policy_folder(policy)
    if folder is None or (folder / CONFIG_FILE).is_file():
        return Weights(model_folder(policy.base_model, policy.revision, weights=needed), folder)
    return Weights(folder)


def _open_engine(config: PipelineConfig, weights: Weights, policy_id: str) -> Policy:
    """A new engine of the configured backend."""
    if config.policy.backend == "vllm":
        from pipeline_lib.policy.vllm_engine.vllm_policy import VllmPolicy

        return VllmPolicy(
            weights.model_dir,
            adapter_dir=weights.adapter_dir,
            policy_id=policy_id,
            config=config.policy,
            instruction="",
            lora_rank=0 if config.train.full_finetuning else config.train.lora_rank,
        )
    if config.policy.backend == "server":
        return _server(config, weights, policy_id)
    from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy

    return TransformersPolicy(
        weights.model_dir, adapter_dir=weights.adapter_dir, policy_id=policy_id, config=config.policy, instruction=""
    )


def _server(config: PipelineConfig, weights: Weights, policy_id: str) -> Policy:
    """The servers' clients; refused at once where training would make weights that no server can be given."""
    from pipeline_lib.policy.server_engine.server_policy import ServerPolicy

    if config.train.full_finetuning:
        raise ConfigError(
            "train.full_finetuning=true: policy.backend=server can give its servers adapters, not full weights; "
            "train adapters, or use policy.backend=vllm"
        )
    key = Settings().server_api_key
    return ServerPolicy(
        weights.model_dir,
        adapter_dir=weights.adapter_dir,
        policy_id=policy_id,
        config=config.policy,
        instruction="",
        api_key=key.get_secret_value() if key is not None else None,
    )


def engine_spec(config: PipelineConfig) -> dict[str, Any]:
    """What sampled results depend on, besides the policy and its requests."""
    spec = config.policy.model_dump(include={"backend", "dtype", "max_context_tokens", "instruction"})
    if config.policy.vllm.quantization is not None:
        spec["quantization"] = config.policy.vllm.quantization
    return spec


def open_policy(config: PipelineConfig, policy: PolicyRef, problems: list[Problem]) -> Policy:
    """An engine with `policy` loaded, its prompts made for these problems' dataset.

    Args:
        config: backend, device, prompt.
        policy: base and adapter.
        problems: all of one dataset; the scripted backend answers just these.
    """
    from pipeline_lib.policy.codec import TokenizerCodec

    dataset_format = format_of(problems[0].dataset)
    instruction = config.policy.instruction
    instruction = dataset_format.instruction if instruction is None else instruction
    if config.policy.backend == "scripted":
        return _scripted(config, policy, problems, instruction)
    engine = engines.open(config, policy)
    engine.codec = TokenizerCodec(engine.codec.tokenizer, instruction)  # type: ignore[attr-defined,misc]  # each engine has this codec
    return engine


def _scripted(config: PipelineConfig, policy: PolicyRef, problems: list[Problem], instruction: str) -> Policy:
    """The scripted backend: worked solutions with seeded mistakes, tokenised as the model would."""
    from pipeline_lib.policy.codec import TokenizerCodec
    from pipeline_lib.policy.loading import load_tokenizer
    from pipeline_lib.policy.scripted import ScriptedPolicy
    from pipeline_lib.problems.tiny import error_prone_script

    base = model_folder(policy.base_model, policy.revision, weights=False)
    codec = TokenizerCodec(load_tokenizer(base, config.policy), instruction)
    script = error_prone_script(problems, lambda question: codec.decode(codec.encode_prompt(question)))
    return ScriptedPolicy(
        script,
        codec,
        policy_id=policy.policy_id,
        capacity=config.policy.max_batch,
        max_context_tokens=config.policy.max_context_tokens,
    )
