"""The device that ``policy.device`` stands for, and the memory that is free there."""

from __future__ import annotations

import psutil
import torch

from pipeline_lib.config import ConfigError


def resolve_device(name: str) -> torch.device:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; ``auto`` takes CUDA when there is one.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"policy.device={name}: torch sees no CUDA device; use auto or cpu")
    return device


def free_memory(name: str) -> tuple[int, str]:
    """Bytes that are free on a device, and what the device is called.

    Args:
        name: see `resolve_device`.
    """
    device = resolve_device(name)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    return int(psutil.virtual_memory().available), "this machine"
