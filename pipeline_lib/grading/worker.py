"""A process that compares answers by algebra, and that the kernel kills when one takes too much.

One idea: no Python code can stop a hang inside a big integer power, so nothing here tries. Before
each answer the process arms a timer on its own CPU time whose signal nobody handles; the kernel
ends the process, even when its parent is long gone. CPU time, so that a busy machine does not
change grades.

Lines of JSON go in (``[answer, gold]``) and out (true or false); the first line out says that the
worker is ready (true) or why it is not (a text).

Example: ``python -m pipeline_lib.grading.worker 5.0 1073741824``
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path

from pipeline_lib.grading.symbolic import is_equal_by_algebra


def main(arguments: list[str]) -> None:
    """Serves until its input ends.

    Args:
        arguments: CPU seconds per answer; bytes of memory beyond those of the idle worker.
    """
    deadline_s, memory_bytes = float(arguments[0]), int(arguments[1])
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not be taken for a reply
    logging.disable()

    def reply(value: bool | str) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        import math_verify  # noqa: F401 - loaded before the cap and the first deadline

        is_equal_by_algebra("x+1", "1+x")
    except ImportError as error:
        reply(str(error))
        return
    _cap_memory(memory_bytes)
    reply(True)
    for line in sys.stdin:
        answer, gold = json.loads(line)
        _arm(deadline_s)
        is_equal = is_equal_by_algebra(answer, gold)
        _arm(0.0)
        reply(is_equal)


def _arm(cpu_s: float) -> None:
    """Lets the kernel end this process after so much CPU time; 0 disarms. Where there is no timer, the parent kills."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, cpu_s)


def _cap_memory(num_bytes: int) -> None:
    """Caps the address space at what is in use now plus `num_bytes`, where the system can."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + num_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, OSError, ValueError):
        return  # no such limit here; the deadline still holds


if __name__ == "__main__":
    main(sys.argv[1:])
