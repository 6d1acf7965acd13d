"""Grading for many answers: the easy ones at once, the hard ones in worker processes.

One idea: most answers need no algebra and cost microseconds where they are submitted; only the rest
goes to other processes, and the first of those starts when the first hard answer comes.
"""

from __future__ import annotations

import atexit
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from pipeline_lib.grading.compare import judge_at_once
from pipeline_lib.grading.processes import DEADLINE_S, MEMORY_BYTES, Workers
from pipeline_lib.types import Grade


def _default_num_workers() -> int:
    return max(1, min(8, (os.cpu_count() or 2) // 2))


class GradingPool:
    """Grades off the caller's path; implements `pipeline_lib.types.Grader`.

    One thread submits and polls; the comparing goes on elsewhere. An answer that needs no algebra
    costs microseconds in `submit`, and a pool that only sees such answers starts no process.

    Args:
        num_workers: processes at most; None takes half of the cores, 8 at most.
        deadline_s: CPU seconds per answer.
        memory_bytes: memory that one answer may take.

    Example: ``with GradingPool() as pool: pool.submit("a", "#### 5", "5"); pool.poll(block=True)``
    """

    def __init__(
        self, num_workers: int | None = None, *, deadline_s: float = DEADLINE_S, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        num_workers = num_workers or _default_num_workers()
        self._workers = Workers(num_workers, deadline_s, memory_bytes)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="grading")
        self._finished: SimpleQueue[tuple[str, Grade | BaseException]] = SimpleQueue()
        self._num_in_flight = 0

    @property
    def num_in_flight(self) -> int:
        return self._num_in_flight

    @property
    def num_processes(self) -> int:
        """Worker processes that are running."""
        return self._workers.num_processes

    def submit(self, key: str, prediction: str, gold: str) -> None:
        self._num_in_flight += 1
        verdict = judge_at_once(prediction, gold)
        if isinstance(verdict, Grade):
            self._finished.put((key, verdict))
            return

        def finish(future: Future[Grade]) -> None:
            error = None if future.cancelled() else future.exception()
            self._finished.put((key, error or (Grade.TIMEOUT if future.cancelled() else future.result())))

        self._threads.submit(self._workers.judge, verdict).add_done_callback(finish)

    def poll(self, *, block: bool) -> list[tuple[str, Grade]]:
        """Finished (key, grade) pairs; with `block`, waits for at least one when any is in flight.

        Raises:
            GradingError: no worker could be started.
        """
        grades: list[tuple[str, Grade]] = []
        while self._num_in_flight:
            try:
                key, outcome = self._finished.get(block=block and not grades)
            except Empty:
                break
            self._num_in_flight -= 1
            if isinstance(outcome, BaseException):
                raise outcome
            grades.append((key, outcome))
        return grades

    def close(self) -> None:
        """Drops what is in flight and ends all workers."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@lru_cache(maxsize=1)
def _shared_workers() -> Workers:
    workers = Workers(_default_num_workers(), DEADLINE_S, MEMORY_BYTES)
    atexit.register(workers.close)
    return workers


_shared_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A forked child must not talk through its parent's pipes.
    os.register_at_fork(after_in_child=_shared_workers.cache_clear)


def grade(prediction: str, gold: str) -> Grade:
    r"""Whether the final answer in `prediction` equals `gold`; safe in any thread.

    Args:
        prediction: the policy's raw text.
        gold: the gold final answer.

    Raises:
        GradingError: algebra was needed and no worker could be started.

    Example: ``grade(r"So it is \boxed{\frac12}.", "0.5")`` is CORRECT; ``grade("Hm.", "5")`` is UNPARSED.
    """
    verdict = judge_at_once(prediction, gold)
    if isinstance(verdict, Grade):
        return verdict
    with _shared_lock:
        workers = _shared_workers()
    return workers.judge(verdict)
