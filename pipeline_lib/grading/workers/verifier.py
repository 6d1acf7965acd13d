"""The user's own grader: a function that is named in the configuration and called in worker processes.

It is somebody else's code, so it is imported and called only in a worker process, which the kernel can end.
Whatever it does wrong with one answer is data about that answer, and never silent: the exception's text is the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
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
