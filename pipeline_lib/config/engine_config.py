"""The groups of `PolicyConfig` that belong to one engine each.

Only that engine reads them, so a user of another one need not.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pipeline_lib.config.group import ConfigGroup


class VllmConfig(ConfigGroup):
    """How vLLM runs in this process; read by ``policy.backend=vllm`` alone."""

    tensor_parallel: int = Field(1, ge=1, description="GPUs that share every layer.")
    pipeline_parallel: int = Field(1, ge=1, description="GPUs, or groups of them, that share the layers out.")
    gpu_memory_share: float = Field(
        0.9, gt=0, le=1, description="Share of a GPU's memory for weights, activations, keys and values, in [0, 1]."
    )
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="Keys and values, in GiB; None: what is left of the share, or 1 on a CPU. A CPU adds up to 1/8.",
    )
    block_tokens: int = Field(
        32, ge=16, le=128, multiple_of=16, description="Tokens of a block of the cache; a GPU reuses whole blocks only."
    )
    quantization: str | None = Field(
        None,
        description="How vLLM quantizes the weights, fp8, awq, gptq and so on; None leaves them as the model has them.",
    )
    speculative: dict[str, Any] | None = Field(
        None, description='Speculative decoding as JSON, for example {"method": "ngram", "num_speculative_tokens": 3}.'
    )
    enforce_eager: bool | None = Field(
        None, description="Run without compiling or capturing graphs; None is true on a CPU and false on a GPU."
    )
    merge_adapters: bool | None = Field(
        None,
        json_schema_extra={"before": None},
        description="An adapter is merged into the weights, and the engine started on them, instead of being computed "
        "beside them; None is true on a CPU, where that is four times as fast, and false on a GPU.",
    )
    keep_while_training: bool = Field(
        True, description="The engine survives training: asleep on a GPU, its weights in host memory. False ends it."
    )


class ServerConfig(ConfigGroup):
    """Which servers sample the policy; read by ``policy.backend=server`` alone. Their key is never part of it."""

    urls: tuple[str, ...] = Field(
        (),
        description="Addresses of `vllm serve`, as http://host:8000; one, or a JSON list. All serve policy.model; an "
        "API key comes from COPPICE_SERVER_API_KEY.",
    )
    model_name: str | None = Field(
        None, description="Name that the servers have for policy.model; None takes the only model that they serve."
    )
    timeout_s: float = Field(
        600.0, gt=0, description="Seconds until a request without an answer is asked elsewhere. Our choice."
    )
    patience_s: float = Field(
        600.0, ge=0, description="Seconds to wait for a server when none answers, before it is an error. Our choice."
    )
    recheck_s: float = Field(
        30.0, gt=0, description="Seconds between two questions to a lost server, at most. Our choice."
    )
    retries: int = Field(
        5,
        ge=0,
        description="Servers that one request may lose and be asked again, before it has failed; see max_failed_share.",
    )

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("urls")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parts = [urlsplit(url) for url in value]
        if any(part.scheme not in ("http", "https") or not part.hostname for part in parts):
            raise ValueError("a server's address looks like http://host:8000")
        if any(part.username or part.password or part.query for part in parts):
            raise ValueError("a key has no place in an address; set COPPICE_SERVER_API_KEY")
        urls = tuple(url.rstrip("/").removesuffix("/v1") for url in value)
        if len(set(urls)) < len(urls):
            raise ValueError("an address stands twice")
        return urls
