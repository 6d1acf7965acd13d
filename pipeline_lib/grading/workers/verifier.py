"""The user's own grader: a function that is named in the configuration and called in worker processes.

It is somebody else's code, so it is imported and called only in a worker process, which the kernel can end.
Whatever it does wrong with one answer is data about that answer, and never silent: the exception's text is the reason.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline_lib.types import Grade

MAX_REASON_CHARS = 500
MATH = "math"
"""The name of Coppice's own grader."""

SOFT_THRESHOLD = 0.5
"""A reward of a verifier from here on counts as CORRECT."""


class Verdict(NamedTuple):
    """What a worker says about one answer.

    Args:
        grade: the verdict.
        reward: in [0, 1]; what a verifier returned, else 1 for CORRECT and 0 for all else.
        reason: a verifier's own words, or the text of the exception that it raised; "" for none.
    """

    grade: Grade
    reward: float = 0.0
    reason: str = ""

    @classmethod
    def of(cls, grade: Grade, reason: str = "") -> Verdict:
        return cls(grade, float(grade is Grade.CORRECT), reason)


Verifier = Callable[[str, str], Any]
"""From prediction and gold to a bool, a number in [0, 1], a `Grade`, or one of these and a reason."""


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


@lru_cache(maxsize=8)
def verifier_digest(name: str) -> str | None:
    """SHA-256 over the source of a verifier: its module's file and, in a package, every Python file of that package.

    Nothing is imported: this is asked outside of the worker processes. What the module imports from elsewhere is not
    part of it; whoever changes that renames the function.

    Args:
        name: see `load_verifier`.

    Returns:
        None where no file is found: whoever loads it says so.
    """
    module, *_ = name.partition(":")
    file = _source_file(module)
    if file is None:
        return None
    # A module that lies in no package has whatever there is in its folder beside it.
    files = sorted(file.parent.rglob("*.py")) if "." in module else [file]
    digest = hashlib.sha256()
    for path in dict.fromkeys([file, *files]):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.relative_to(file.parent)}:{content};".encode())
    return digest.hexdigest()


def _source_file(module: str) -> Path | None:
    """Where a worker process, which looks in the current folder first, would import a module from."""
    top, *inner = module.split(".")
    path = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    spec = importlib.machinery.PathFinder.find_spec(top, path) or importlib.util.find_spec(top)
    for number, _ in enumerate(inner, start=2):
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = ".".join(module.split(".")[:number])
        spec = importlib.machinery.PathFinder.find_spec(name, list(spec.submodule_search_locations))
    found = None if spec is None or spec.origin is None else Path(spec.origin)
    return found if found is not None and found.is_file() else None


def verify_answer(verifier: Verifier, prediction: str, gold: str) -> Verdict:
    """What `verifier` says; UNPARSED, with the reason, when it raises or returns what is no verdict.

    Raises:
        MemoryError: the process's memory cap was reached.

    Example: ``verify_answer(lambda prediction, gold: 0.75, "5", "6") == Verdict(Grade.CORRECT, 0.75)``
    """
    try:
        said = verifier(prediction, gold)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        return Verdict(Grade.UNPARSED, reason=_one_line(f"{type(error).__name__}: {error}"))
    value, reason = said if isinstance(said, tuple) and len(said) == 2 else (said, "")
    verdict = _verdict(value)
    if verdict is None or not isinstance(reason, str):
        expected = "expected a bool, a number from 0 to 1, a Grade, or one of these and a reason"
        return Verdict(Grade.UNPARSED, reason=_one_line(f"returned {said!r}; {expected}"))
    return verdict._replace(reason=_one_line(reason))


def _verdict(value: object) -> Verdict | None:
    """The verdict that a verifier's value is; None where it is none."""
    if isinstance(value, bool):
        return Verdict.of(Grade.CORRECT if value else Grade.WRONG)
    if isinstance(value, str):  # a Grade, or its value
        return Verdict.of(Grade(value)) if value in list(Grade) else None
    if isinstance(value, (int, float)) and 0 <= value <= 1:
        return Verdict(Grade.CORRECT if value >= SOFT_THRESHOLD else Grade.WRONG, float(value))
    return None


def _one_line(text: str) -> str:
    return " ".join(text.encode(errors="replace").decode().split())[:MAX_REASON_CHARS]
