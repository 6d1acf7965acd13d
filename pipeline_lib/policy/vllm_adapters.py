"""What the vLLM backend must know of an adapter before it sends it to the engine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline_lib.config import ConfigError

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


def adapter_rank(folder: Path) -> int:
    """The largest rank in an adapter.

    Raises:
        ConfigError: the folder holds no adapter.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            what = f"has no {name}" if folder.is_dir() else "does not exist"
            raise ConfigError(f"the adapter folder {folder} {what}")
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return max(int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values()), 0)


def adapter_digest(folder: Path) -> str:
    """16 hex digits over the adapter's weights and scale; "" if it changes nothing, as one that was never trained."""
    weights = load_file(folder / WEIGHTS_FILE)
    if not any(bool(torch.any(weight)) for name, weight in weights.items() if "lora_A" not in name):
        return ""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    digest = hashlib.sha256(f"{config['lora_alpha']}/{config['r']}".encode())
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
