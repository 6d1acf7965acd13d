"""What an engine that loads adapters while it runs must know of one before it does.

One idea: an adapter is named by its content, so that a name never stands for two sets of weights.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from pipeline_lib.policy.model_folders import check_folder, fingerprint

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


class StaleWeightsError(RuntimeError):
    """An engine that was given other weights answers as it did before."""


class Weights(NamedTuple):
    """What is sampled: a model folder or hub name, and the folder of a LoRA adapter on it, or None."""

    model_dir: Path | str
    adapter_dir: Path | None = None

    def digest(self, revision: str | None) -> str:
        """Hex digits that differ where the weights do; an adapter that changes nothing leaves the base's own.

        Raises:
            ConfigError: the adapter's folder holds no adapter.
        """
        base = fingerprint(self.model_dir, revision if isinstance(self.model_dir, str) else None)
        adapter = "" if self.adapter_dir is None else adapter_digest(self.adapter_dir)
        return f"{base}-{adapter}" if adapter else base


class ProbeAnswers:
    """What an engine answered to one fixed question, bit by bit, with each of the weights that it was given."""

    def __init__(self) -> None:
        self._digests: dict[bytes, str] = {}

    def check(self, answer: bytes, digest: str, engine: str, given: Path | str | None) -> None:
        """Keeps an answer, or finds that it was given with other weights.

        Args:
            answer: bits that are equal for equal weights.
            digest: of the weights that the engine was given last.
            engine: the engine's name, for the message.
            given: folder or hub name of these weights, for the message.

        Raises:
            StaleWeightsError: the answer is that of weights with another digest.
        """
        first = self._digests.setdefault(answer, digest)
        if first != digest:
            raise StaleWeightsError(
                f"{engine} was given {given} ({digest}) and still answers as with {first}; run again"
            )


def adapter_rank(folder: Path) -> int:
    """The largest rank in an adapter.

    Raises:
        ConfigError: the folder holds no adapter.
    """
    config = _read_config(folder)
    return max(int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values()), 0)


def adapter_digest(folder: Path) -> str:
    """16 hex digits over the adapter's weights and scale; "" if it changes nothing, as one that was never trained.

    Raises:
        ConfigError: the folder holds no adapter.
    """
    config = _read_config(folder)
    weights = load_file(folder / WEIGHTS_FILE)
    if not any(bool(torch.any(weight)) for name, weight in weights.items() if "lora_A" not in name):
        return ""
    scale = f"{config['lora_alpha']}/{config['r']}" + (" of the root" if config.get("use_rslora") else "")
    digest = hashlib.sha256(scale.encode())
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_config(folder: Path) -> dict[str, Any]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        check_folder(folder, "adapter", holds=name)
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return config
