"""Where a result came from: code, versions and hardware, as flat text tags.

Nothing here imports what it describes. Versions come from the installed metadata and the GPU from its driver's own
tool, so that asking costs milliseconds and loads no framework.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import psutil

from pipeline_lib.distribution import DISTRIBUTION

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("torch", "transformers", "peft", "prefect", "mlflow", "numpy")


def describe_environment() -> dict[str, str]:
    """Tags of this process's surroundings, as they were when it first asked; what cannot be found out is left out.

    Keys: ``mlflow.source.git.commit`` (the name under which MLflow shows it), ``git/dirty``,
    ``version/<library>``, ``hardware/cpu``, ``hardware/cores``, ``hardware/memory_gib``, ``hardware/gpu``.
    """
    return dict(_described())


@lru_cache(maxsize=1)
def _described() -> dict[str, str]:
    tags = {"version/python": platform.python_version(), "hardware/platform": platform.platform()}
    names = {name: name for name in LIBRARIES} | {"coppice": DISTRIBUTION}
    tags |= {f"version/{name}": version for name, installed in names.items() if (version := package_version(installed))}
    tags["hardware/cpu"] = _cpu_model()
    tags["hardware/cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    tags["hardware/memory_gib"] = f"{psutil.virtual_memory().total / 2**30:.1f}"
    if gpus := _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"):
        tags["hardware/gpu"] = "; ".join(gpus.splitlines())
    return tags | _git_tags()


def checkout_commit() -> str | None:
    """The commit of the checkout that this code lies in; None for an installed copy."""
    # That may lie inside somebody else's repository: only a checkout of Coppice counts.
    return (_output("git", "-C", str(ROOT), "rev-parse", "HEAD") or None) if (ROOT / ".git").exists() else None


def _git_tags() -> dict[str, str]:
    if (commit := checkout_commit()) is None:
        return {}
    changes = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "git/dirty": str(bool(changes)).lower()}


def package_version(name: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
