"""An engine that samples a policy: at most one is open in a process."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.policy.model_folders import chat_template, code_digest, model_folder
from pipeline_lib.policy.prompting.conversation import PLAIN_VERSION
from pipeline_lib.policy.protocol import Policy, Reloadable
from pipeline_lib.store import canonical_json
from pipeline_lib.types import PolicyRef, Problem
from tasks.runtime.keys import key_of
from tasks.runtime.policies import policy_folder
from tasks.runtime.prompts import codec_for, instruction_for, shots_for

if TYPE_CHECKING:
    from pipeline_lib.policy.adapters import Weights
    from pipeline_lib.policy.codec import TokenizerCodec

TINY_TEMPLATE = "cbc01494bf074f747f64548dd43ec26c92e226c02bc9e52180699e3b2b69ff17"
"""Digest of the chat template of the base that comes with Coppice, as in version 0.1.0."""
SAMPLED_WITH = {
    *("backend", "dtype", "max_context_tokens"),
    *("system_prompt", "chat_template_kwargs", "stop", "stop_after_answer"),
}
"""Settings of the policy that say how it is asked and where its answers end."""


class Engines:
    """At most one engine is open in each: a model's memory is freed before the next one is loaded."""

    def __init__(self) -> None:
        self._key: tuple[str, ...] | None = None
        self._policy: Policy | None = None
        self._tokenizer: Any = None

    def open(self, config: PipelineConfig, policy: PolicyRef, *, dataset: str) -> Policy:
        """The engine with `policy` loaded; one that can change its weights is kept from policy to policy.

        Args:
            config: backend, device, and what the backend is told.
            policy: base and adapter, or full weights.
            dataset: whose questions its codec makes prompts of.
        """
        from pipeline_lib.policy.tokenizers import load_tokenizer

        weights = _weights(policy, needed=config.policy.backend != "server")
        is_kept = config.policy.backend in ("vllm", "server")
        key = (config.policy.model_dump_json(), "" if is_kept else policy.policy_id)
        # What is in flight was left there by a task that failed.
        if self._policy is None or self._key != key or self._policy.num_in_flight:
            self.close()
            self._tokenizer = load_tokenizer(weights.model_dir, config.policy)
            codec = codec_for(config, self._tokenizer, dataset)
            self._policy, self._key = _open_engine(config, weights, policy.policy_id, codec), key
            return self._policy
        self._policy.codec = codec_for(config, self._tokenizer, dataset)
        if isinstance(self._policy, Reloadable):
            self._policy.load(weights.model_dir, adapter_dir=weights.adapter_dir, policy_id=policy.policy_id)
        return self._policy

    def free_for_training(self) -> None:
        """Frees the device's memory; an engine that can be loaded again is back sooner than a new one."""
        if isinstance(self._policy, Reloadable) and not self._policy.num_in_flight:
            self._policy.free_for_training()
        else:
            self.close()

    def close(self) -> None:
        """Ends the engine."""
        policy = self._policy
        self._policy = self._key = self._tokenizer = None
        if policy is not None:
            policy.close()


engines = Engines()


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


def _open_engine(config: PipelineConfig, weights: Weights, policy_id: str, codec: TokenizerCodec) -> Policy:
    """A new engine of the configured backend."""
    if config.policy.backend == "vllm":
        from pipeline_lib.policy.vllm_engine.vllm_policy import VllmPolicy

        return VllmPolicy(
            weights.model_dir,
            adapter_dir=weights.adapter_dir,
            policy_id=policy_id,
            config=config.policy,
            codec=codec,
            lora_rank=0 if config.train.full_finetuning else config.train.lora_rank,
        )
    if config.policy.backend == "server":
        return _open_server(config, weights, policy_id, codec)
    from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy

    return TransformersPolicy(
        weights.model_dir, adapter_dir=weights.adapter_dir, policy_id=policy_id, config=config.policy, codec=codec
    )


def _open_server(config: PipelineConfig, weights: Weights, policy_id: str, codec: TokenizerCodec) -> Policy:
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
        codec=codec,
        api_key=key.get_secret_value() if key is not None else None,
    )


def engine_spec(config: PipelineConfig, policy: PolicyRef, dataset: str) -> dict[str, Any]:
    """What sampled results depend on, besides the policy and its requests: the engine, and all that makes a prompt.

    A base's id stands for its chat template, too; an adapter's does not. Where a prompt is made as by version 0.1.0,
    for the base that comes with Coppice, the key is that of 0.1.0.

    Args:
        config: backend, number type, context, what is said around a question and what ends an answer.
        policy: what is sampled.
        dataset: whose format says what is appended to a question, if the configuration does not.
    """
    spec = key_of(config.policy, only=SAMPLED_WITH)
    spec["instruction"] = instruction_for(config, dataset) or None
    if config.policy.vllm.quantization is not None:
        spec["quantization"] = config.policy.vllm.quantization
    template = chat_template(model_folder(policy.base_model, policy.revision, weights=False))
    if policy.adapter_uri is not None and template.digest != TINY_TEMPLATE:
        spec["template"] = template.digest
    spec |= code_spec(config, policy)
    if template.is_empty:
        spec["plain_template"] = PLAIN_VERSION
    if config.policy.num_shots:
        spec["shots"] = hashlib.sha256(canonical_json(shots_for(config)).encode()).hexdigest()
    if template.reads_date:
        spec["template_date"] = config.policy.template_date.isoformat()
    return spec


def code_spec(config: PipelineConfig, policy: PolicyRef) -> dict[str, str]:
    """The model's own code, where it is run; its id says nothing of it."""
    if not config.policy.trust_remote_code:
        return {}
    digest = code_digest(model_folder(policy.base_model, policy.revision, weights=False))
    return {} if digest is None else {"code": digest}


def open_policy(config: PipelineConfig, policy: PolicyRef, problems: list[Problem]) -> Policy:
    """An engine with `policy` loaded, its prompts made for these problems' dataset.

    Args:
        config: backend, device, prompt.
        policy: base and adapter.
        problems: all of one dataset; the scripted backend answers just these.
    """
    if config.policy.backend == "scripted":
        return _open_scripted(config, policy, problems)
    return engines.open(config, policy, dataset=problems[0].dataset)


def check_trainable(config: PipelineConfig, policy: PolicyRef) -> None:
    """Raises ConfigError where the model's configuration says that training cannot use what a search would find.

    Args:
        config: context and revision.
        policy: its base is looked at; no weights are read.
    """
    from pipeline_lib.training.architectures.layers import check_layers

    check_layers(model_folder(policy.base_model, policy.revision, weights=False), config.policy)


def _open_scripted(config: PipelineConfig, policy: PolicyRef, problems: list[Problem]) -> Policy:
    """The scripted backend: worked solutions with seeded mistakes, tokenised as the model would."""
    from pipeline_lib.policy.scripted import ScriptedPolicy
    from pipeline_lib.policy.tokenizers import load_tokenizer
    from pipeline_lib.problems.tiny import error_prone_script

    base = model_folder(policy.base_model, policy.revision, weights=False)
    codec = codec_for(config, load_tokenizer(base, config.policy), problems[0].dataset)
    script = error_prone_script(problems, lambda question: codec.decode(codec.encode_prompt(question)))
    return ScriptedPolicy(
        script,
        codec,
        policy_id=policy.policy_id,
        capacity=config.policy.max_batch,
        max_context_tokens=config.policy.max_context_tokens,
    )
