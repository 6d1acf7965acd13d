"""The user's own grader: a function that is named in the configuration and called in worker processes.

It is somebody else's code, so it is imported and called only in a worker process, which the kernel can end.
Whatever it does wrong with one answer is data about that answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from pipeline_lib.types import Grade

MATH = "math"
"""The name of Coppice's own grader."""

Verifier = Callable[[str, str], bool]


def load_verifier(name: str) -> Verifier:
    """The function that `name` stands for; imports its module.

    Args:
        name: ``my_package.my_module:verify``; the module must be installed, on ``PYTHONPATH`` or below
            the current folder.

    Raises:
        ImportError: no such module, or no such function in it.
        Exception: whatever the module raises while it is imported.

    Example: ``load_verifier("operator:eq")("5", "5") is True``
    """
    module_name, _, function_name = name.partition(":")
    verifier: Verifier | None = getattr(importlib.import_module(module_name), function_name, None)
    if not callable(verifier):
        raise ImportError(f"module {module_name} has no function {function_name}")
    return verifier


def verify_answer(verifier: Verifier, prediction: str, gold: str) -> Grade:
    """CORRECT or WRONG as `verifier` says; UNPARSED when it raises or returns anything but True or False.

    Raises:
        MemoryError: the process's memory cap was reached.
    """
    try:
        verdict = verifier(prediction, gold)
    except MemoryError:
        raise
    except (Exception, SystemExit):
        return Grade.UNPARSED
    if not isinstance(verdict, bool):
        return Grade.UNPARSED
    return Grade.CORRECT if verdict else Grade.WRONG
