"""Errors as a person meets them: one line, and an exit code that says whose fault it is."""

from __future__ import annotations

from pipeline_lib.distribution import EXTRA_OF, advice

OUR_PACKAGES = ("deployments", "flows", "pipeline_lib", "tasks")
USER_ERROR, OTHER_ERROR = 2, 1


def describe_error(error: Exception) -> tuple[str, int]:
    """One line about `error`, and the exit code: 2 when the user can put it right, else 1.

    An error class of our own promises a message that says what to do; of a module that an extra brings, that extra is
    named; any other error names itself.
    """
    text = " ".join(str(error).split())
    if type(error).__module__.partition(".")[0] in OUR_PACKAGES:
        return f"coppice: {text}", USER_ERROR
    if isinstance(error, ModuleNotFoundError) and (module := (error.name or "").partition(".")[0]) in EXTRA_OF:
        return f"coppice: {advice(module)}", USER_ERROR
    return f"coppice: {type(error).__name__}: {text or 'no message'} (COPPICE_DEBUG=1 shows where)", OTHER_ERROR
