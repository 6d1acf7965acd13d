"""Grading for many answers: the easy ones at once, the hard ones in worker processes.

Most answers need no algebra and cost microseconds where they are submitted; only the rest goes to other
processes, and the first of those starts when the first hard answer comes. A user's own verifier sees every
answer, and always in a worker process.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Self

from pipeline_lib.grading.compare import grade_without_algebra
from pipeline_lib.grading.conventions import DEFAULT, Conventions
from pipeline_lib.grading.extract import extract_answer
from pipeline_lib.grading.spelling import normalise_answer
from pipeline_lib.grading.workers.verifier import MATH, Verdict
from pipeline_lib.grading.workers.worker_process import DEADLINE_S, MEMORY_BYTES, GradingError, Request, Workers
from pipeline_lib.types import Grade

LOGGER = logging.getLogger("coppice.progress")
MAX_WARNINGS = 10


@dataclass(frozen=True, slots=True)
class Graded:
    """A grade with the final answer that it is about.

    Args:
        grade: the verdict.
        answer: as extracted from the prediction; None when it announces none.
        reward: in [0, 1]; None stands for 1 where the grade is CORRECT, else 0. Only a verifier gives another one.
        reason: what a verifier said, or the text of the exception that it raised.
    """

    grade: Grade
    answer: str | None
    reward: float | None = None
    reason: str = ""


def default_num_workers() -> int:
    """Half of the cores, at least 1 and at most 8."""
    return max(1, min(8, (os.cpu_count() or 2) // 2))


class GradingPool:
    """Grades off the caller's path; implements `pipeline_lib.grading.grader.Grader`.

    Any thread may submit and poll. An answer that needs no algebra costs microseconds in `submit`,
    and a pool that only sees such answers starts no process.

    Args:
        num_workers: processes at most; None takes `default_num_workers`.
        deadline_s: CPU seconds per answer.
        memory_bytes: memory that one answer may take.
        conventions: what counts as equal where opinions differ; a verifier does not see them.
        grader: ``math``, or ``my_package.my_module:verify``, a function from prediction and gold to a bool, a number
            in [0, 1], a `Grade`, or one of these and a reason. An exception in it is UNPARSED, its text the reason,
            and logged as a warning.

    Raises:
        GradingError: the verifier could not be loaded.

    Example: ``with GradingPool() as pool: pool.submit("a", "#### 5", "5"); pool.poll(block=True)``
    """

    def __init__(
        self,
        num_workers: int | None = None,
        *,
        deadline_s: float = DEADLINE_S,
        memory_bytes: int = MEMORY_BYTES,
        conventions: Conventions = DEFAULT,
        grader: str = MATH,
    ) -> None:
        if grader != MATH and ":" not in grader:
            raise GradingError(f"grader={grader}: expected {MATH} or my_package.my_module:verify")
        num_workers = num_workers or default_num_workers()
        self._conventions, self._grader = conventions, grader
        self._workers = Workers(num_workers, deadline_s, memory_bytes, grader)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="grading")
        self._changed = threading.Condition()
        self._finished: list[tuple[str, str, Verdict | BaseException]] = []
        self._warned: set[str] = set()
        self._num_in_flight = 0
        if grader != MATH:
            self._workers.start()

    @property
    def num_in_flight(self) -> int:
        return self._num_in_flight

    @property
    def num_processes(self) -> int:
        """Worker processes that are running."""
        return self._workers.num_processes

    def submit(self, key: str, prediction: str, gold: str) -> None:
        request: Grade | Request = (prediction, gold)
        if self._grader == MATH:
            request = _grade_without_algebra(prediction, gold, self._conventions)
        with self._changed:
            self._num_in_flight += 1
        if isinstance(request, Grade):
            self._finish(key, prediction, Verdict.of(request))
            return

        def finish(future: Future[Verdict]) -> None:
            error = None if future.cancelled() else future.exception()
            outcome = error or (Verdict(Grade.TIMEOUT) if future.cancelled() else future.result())
            self._finish(key, prediction, outcome)

        self._threads.submit(self._workers.judge, request).add_done_callback(finish)

    def poll(self, *, block: bool) -> list[tuple[str, Grade]]:
        """Finished (key, grade) pairs; with `block`, waits for at least one when any is in flight.

        Raises:
            GradingError: no worker could be started.
        """
        return [(key, verdict.grade) for key, _, verdict in self._collect(block)]

    def poll_verdicts(self, *, block: bool) -> list[tuple[str, Verdict]]:
        """Like `poll`, with the reward of each answer, in [0, 1], beside its grade, and a verifier's reason."""
        return [(key, verdict) for key, _, verdict in self._collect(block)]

    def poll_answers(self, *, block: bool) -> list[tuple[str, Graded]]:
        """Like `poll`, with the extracted answers beside the grades, and what a verifier said."""
        return [(key, self._graded(text, verdict)) for key, text, verdict in self._collect(block)]

    def _graded(self, text: str, verdict: Verdict) -> Graded:
        reward = None if self._grader == MATH else verdict.reward
        return Graded(verdict.grade, self._extract(text), reward, verdict.reason)

    def _extract(self, text: str) -> str | None:
        return extract_answer(
            text, last_number=self._conventions.last_number, cut_thoughts=self._conventions.cut_thoughts
        )

    def close(self) -> None:
        """Drops what is in flight and ends all workers."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._workers.close()

    def _finish(self, key: str, prediction: str, outcome: Verdict | BaseException) -> None:
        with self._changed:
            self._finished.append((key, prediction, outcome))
            self._changed.notify()

    def _collect(self, block: bool) -> list[tuple[str, str, Verdict]]:
        with self._changed:
            while block and self._num_in_flight and not self._finished:
                self._changed.wait()
            finished, self._finished = self._finished, []
            self._num_in_flight -= len(finished)
            self._changed.notify_all()  # whoever waits in another thread may have nothing left to wait for
        graded: list[tuple[str, str, Verdict]] = []
        for key, prediction, outcome in finished:
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome.grade is Grade.UNPARSED and outcome.reason:
                self._warn(outcome.reason)
            graded.append((key, prediction, outcome))
        return graded

    def _warn(self, reason: str) -> None:
        """Once per kind of fault, and no more than a few: a verifier that always raises would fill the log."""
        kind = reason.partition(":")[0]
        if kind not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(kind)
            LOGGER.warning("grader=%s: an answer is unparsed: %s", self._grader, reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@lru_cache(maxsize=1)
def _shared_workers() -> Workers:
    workers = Workers(default_num_workers(), DEADLINE_S, MEMORY_BYTES)
    atexit.register(workers.close)
    return workers


_shared_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A forked child must not talk through its parent's pipes.
    os.register_at_fork(after_in_child=_shared_workers.cache_clear)


def grade(prediction: str, gold: str, *, conventions: Conventions = DEFAULT) -> Grade:
    r"""Whether the final answer in `prediction` equals `gold`; safe in any thread.

    Args:
        prediction: the policy's raw text.
        gold: the gold final answer.
        conventions: what counts as equal where opinions differ.

    Raises:
        GradingError: algebra was needed and no worker could be started.

    Example: ``grade(r"So it is \boxed{\frac12}.", "0.5")`` is CORRECT; ``grade("Hm.", "5")`` is UNPARSED.
    """
    return _decide(prediction, gold, conventions)


def grade_answer(prediction: str, gold: str, *, conventions: Conventions = DEFAULT) -> Graded:
    r"""Like `grade`, with the extracted answer beside the grade.

    Args:
        prediction: the policy's raw text.
        gold: the gold final answer.
        conventions: what counts as equal where opinions differ.

    Raises:
        GradingError: algebra was needed and no worker could be started.

    Example: ``grade_answer(r"So it is \boxed{\frac12}.", "0.5") == Graded(Grade.CORRECT, r"\frac12")``
    """
    answer = extract_answer(prediction, last_number=conventions.last_number, cut_thoughts=conventions.cut_thoughts)
    return Graded(_decide(prediction, gold, conventions), answer)


def _grade_without_algebra(prediction: str, gold: str, conventions: Conventions) -> Grade | Request:
    """UNPARSED rather than WRONG where the gold holds nothing to compare with."""
    verdict = grade_without_algebra(prediction, gold, conventions)
    return Grade.UNPARSED if verdict is Grade.WRONG and _is_empty(gold) else verdict


@lru_cache(maxsize=1024)  # one gold is compared with all rollouts of its problem
def _is_empty(gold: str) -> bool:
    return not normalise_answer(gold)


def _decide(prediction: str, gold: str, conventions: Conventions) -> Grade:
    verdict = _grade_without_algebra(prediction, gold, conventions)
    if isinstance(verdict, Grade):
        return verdict
    with _shared_lock:
        workers = _shared_workers()
    return workers.judge(verdict).grade
