"""The distribution that is installed: its version, and how a part that it leaves out is added.

On the package registry `coppice` is another project, so what is installed is called ``coppice-reasoning``; packages
and the command keep their name.
"""

from __future__ import annotations

import importlib.util

DISTRIBUTION = "coppice-reasoning"
EXTRA_OF = {  # modules that a plain installation lacks, by the extra of pyproject.toml that brings them
    "gguf": "smollm2",
    "prefect_ray": "ray",
    "psycopg2": "postgres",
    "ray": "ray",
    "s3fs": "s3",
    "trl": "trl",
    "vllm": "vllm",
}


def installed_version() -> str | None:
    """The installed version, ``0.1.0``; None where the code runs from a folder that was never installed."""
    import importlib.metadata  # a sixth of what `coppice --help` takes

    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_module(*names: str) -> str | None:
    """What to do about the first of the modules that is not installed, as the end of an error's line; None if all are.

    Args:
        names: top-level modules, each a key of `EXTRA_OF`.

    Example: without Ray, ``missing_module("prefect_ray")`` is
    ``prefect_ray is not installed; run pip install "coppice-reasoning[ray]"``.
    """
    return next((advice(name) for name in names if importlib.util.find_spec(name) is None), None)


def advice(module: str) -> str:
    """What a person reads of a module that is missing; for one of no extra, only its name."""
    extra = EXTRA_OF.get(module)
    return f"{module} is not installed" + ("" if extra is None else f"; run {install_command(extra)}")


def install_command(extra: str) -> str:
    """What adds an extra to this installation, as it is typed in a shell; an environment that uv made has no pip."""
    program = "uv pip" if importlib.util.find_spec("pip") is None else "pip"
    return f'{program} install "{DISTRIBUTION}[{extra}]"'
