"""A process that grades one answer after the other, and that the kernel kills when one takes too much.

One idea: no Python code can stop a hang inside a big integer power, so nothing here tries. Before
each answer the process arms a timer on its own CPU time whose signal nobody handles; the kernel
ends the process, even when its parent is long gone. CPU time, so that a busy machine does not
change grades. Algebra takes two seconds to import, so the process that did it only forks the one
that grades, and forks again when that one was ended.

Lines of JSON go in, the arguments of one judgement, and out, its grade. The first line out is
``ready``, or why the worker is not.

Example: ``python -m pipeline_lib.grading.workers.grading_worker 5.0 1073741824 math``
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import mmap
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from pipeline_lib.grading.conventions import Conventions
from pipeline_lib.grading.symbolic import is_equal_by_algebra, is_readable
from pipeline_lib.grading.workers.verifier import MATH, Verdict, load_verifier, verify_answer
from pipeline_lib.types import Grade

READY = "ready"
WARM_UP_FORMULAS = r"""
    \sqrt[3]{a}-\frac{\sqrt{a}}{b}+|c|   and   \sqrt[3]{a}-\frac{\sqrt{a}}{b}+\sqrt{c^2}
    \frac{\ln a}{\log_2 b}+e^{-a}+3\cdot 2^{n+1}   and   \frac{\ln a}{\log_2 b}+e^{-a}+6\cdot 2^n
    \frac{\cos a}{\sin^2 3b}+\tan 2c   and   \frac{\cos a}{\sin^2 b}+\tan 2c
    (a-1)^2=0   and   a-1=0
    \sum_{k=1}^{n} k   and   \frac{n(n+1)}{2}
    \int_0^1 x^2 dx   and   \frac{1}{3}
    \lim_{x\to 0} \frac{\sin x}{x}   and   1
    \begin{pmatrix}1&2\\3&4\end{pmatrix}^2   and   \begin{pmatrix}7&10\\15&22\end{pmatrix}
"""
"""Pairs of most kinds that come here: a parser's first reading of a kind takes 30 times as long as the next."""


def main(arguments: list[str]) -> None:
    """Serves until its input ends.

    Args:
        arguments: CPU seconds per answer; bytes of memory beyond those of the idle worker; ``math``
            or the name of a verifier.
    """
    deadline_s, memory_bytes, grader = float(arguments[0]), int(arguments[1]), arguments[2]
    requests, replies = _take_pipes()
    logging.disable()

    def reply(text: str | Verdict) -> None:
        replies.write(json.dumps(text) + "\n")
        replies.flush()

    try:
        judge = _open_judge(grader)  # loaded before the cap and the first deadline
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        reply(f"{type(error).__name__}: {error}")
        return
    _cap_memory(memory_bytes)
    reply(READY)
    is_judging = mmap.mmap(-1, 1)  # shared with the fork
    if grader == MATH and hasattr(os, "fork"):  # what a verifier has started must end with it: see `Worker.kill`
        _go_on_in_a_fork(is_judging, reply)
    for line in requests:
        is_judging[0] = True
        _arm(deadline_s)
        verdict = judge(*json.loads(line))
        _arm(0.0)
        is_judging[0] = False  # before the reply: the pipe must never hold two replies to one request
        reply(verdict)


def _go_on_in_a_fork(is_judging: mmap.mmap, reply: Callable[[str], None]) -> None:
    """Returns in a child; the parent stays here, makes the next one whenever one was ended, and replies for the dead.

    Args:
        is_judging: one byte, shared with the children: 0 while nobody waits for a reply.
        reply: sends a grade to whoever asked.
    """
    owes_reply = False
    while pid := os.fork():
        if owes_reply:  # now that the next one is there
            reply(Grade.TIMEOUT)
        _, status = os.waitpid(pid, 0)
        if status == 0:  # no more requests
            sys.exit()
        owes_reply, is_judging[0] = bool(is_judging[0]), False


def _open_judge(grader: str) -> Callable[..., Grade | Verdict]:
    if grader != MATH:
        return partial(verify_answer, load_verifier(grader))
    import math_verify  # noqa: F401 - its first import takes a second

    patch_latex_reader()
    for pair in WARM_UP_FORMULAS.strip().splitlines():
        formula, other = pair.split("   and   ")
        _judge_by_algebra(formula.strip(), other.strip())
    gc.freeze()  # what the libraries hold is garbage to nobody, and takes 50 ms to walk over
    return _judge_by_algebra


def patch_latex_reader() -> None:
    """Patches latex2sympy's parser: it predicts without context first, and reads numbers without evaluating them.

    1. Reading is most of what an answer costs. ANTLR's SLL mode gives the parse of its full LL mode or
       an error, at a quarter of the price; see ``PredictionMode`` in its documentation.
    2. ``sympy.Number`` hands a decimal to ``eval``; as a fraction it is exact, too.

    Does nothing when latex2sympy looks other than expected.
    """
    modes = importlib.import_module("antlr4.atn.PredictionMode").PredictionMode
    reader: Any = getattr(importlib.import_module("latex2sympy2_extended.latex2sympy2"), "_Latex2Sympy", None)
    if not all(hasattr(reader, name) for name in ("create_parser", "parse", "parse_number")):
        return
    create_parser, parse = reader.create_parser, reader.parse
    mode = modes.SLL

    def create(self: Any, latex: str) -> Any:
        parser = create_parser(self, latex)
        parser._interp.predictionMode = mode
        return parser

    def parse_in_two_stages(self: Any, latex: str) -> Any:
        nonlocal mode
        try:
            return parse(self, latex)
        except MemoryError:
            raise
        except Exception:
            mode = modes.LL
            return parse(self, latex)
        finally:
            mode = modes.SLL

    def parse_number(self: Any, text: str) -> Any:
        return importlib.import_module("sympy").Rational(text.replace(",", ""))

    reader.create_parser, reader.parse, reader.parse_number = create, parse_in_two_stages, parse_number


def _judge_by_algebra(answer: str, gold: str, conventions: dict[str, Any] | None = None) -> Grade:
    """UNPARSED rather than WRONG where the gold is no formula: nothing was compared with it."""
    chosen = Conventions(**conventions or {})
    if is_equal_by_algebra(answer, gold, chosen):
        return Grade.CORRECT
    return Grade.WRONG if is_readable(gold, chosen) else Grade.UNPARSED


def _take_pipes() -> tuple[TextIO, TextIO]:
    """Requests and replies on descriptors of their own: nobody's ``print`` or ``input`` may get between."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    return requests, replies


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
