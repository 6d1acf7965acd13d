"""The parent's side of the worker processes: start, ask, kill, replace.

One idea: a worker is expendable. It answers in time, or its judging process is ended (see `grading_worker`)
and the answer is a TIMEOUT; when the whole worker ended, the next hard answer starts a new one. Workers are
plain subprocesses that read and write lines of JSON, so nothing depends on how, or from which thread, the
caller was started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline_lib.grading.conventions import Conventions
from pipeline_lib.grading.workers.verifier import MATH, Verdict
from pipeline_lib.types import Grade

DEADLINE_S = 3.0
MEMORY_BYTES = 768 << 20  # and about 100 MiB of the idle worker: less than 1 GiB in all
START_S = 180.0
WALL_PER_CPU = 4.0
"""The parent kills after this many times the deadline: a net below the worker's own timer."""
_CACHED_VERDICTS = 16_384
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_READY = "ready"

Request = tuple[str | Conventions, ...]
"""What a worker judges: answer and gold as `compare.Undecided` has them, or a verifier's two arguments."""


class GradingError(RuntimeError):
    """No worker could be started; the message is one line and says why."""


class Worker:
    """One worker process; used by one thread at a time. It must be `wait_until_ready` before the first `ask`.

    Args:
        deadline_s: CPU seconds per answer.
        memory_bytes: memory that one answer may take.
        grader: ``math``, or a verifier's name (see `verifier.load_verifier`).
    """

    def __init__(self, deadline_s: float, memory_bytes: int, grader: str = MATH) -> None:
        path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]))
        one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._grader = grader
        self._wall_s = deadline_s * WALL_PER_CPU
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pipeline_lib.grading.workers.grading_worker",
                str(deadline_s),
                str(memory_bytes),
                grader,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, **one_thread, "PYTHONPATH": path},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Returns when the worker can be asked.

        Raises:
            GradingError: it did not start, or the user's verifier could not be imported.
        """
        greeting: str | None = self._exchange(None, START_S)
        if greeting == _READY:
            return
        self.kill()
        reason = " ".join((greeting or "it ended at once").split())
        if self._grader != MATH:
            raise GradingError(f"grader={self._grader}: cannot be loaded in a worker process: {reason}")
        raise GradingError(f"the grading worker did not start: {reason}; reinstall Coppice")

    def ask(self, request: Request) -> Grade:
        """TIMEOUT when it took too long or too much memory; the worker may have ended by that."""
        return self.ask_for_verdict(request).grade

    def ask_for_verdict(self, request: Request) -> Verdict:
        """Like `ask`, with a verifier's reward and reason."""
        reply = self._exchange(json.dumps(request, default=asdict) + "\n", self._wall_s)
        if reply is None:
            self.kill()
            return Verdict(Grade.TIMEOUT)
        if isinstance(reply, str):
            return Verdict.of(Grade(reply))
        grade, reward, reason = reply
        return Verdict(Grade(grade), reward, reason)

    def kill(self) -> None:
        """Ends the worker and whatever processes a verifier started in it."""
        self._kill_group()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # what could not be written any more
                    continue

    def _kill_group(self) -> None:
        if self._process.returncode is not None:
            return  # the number may be another process's by now
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def _exchange(self, line: str | None, limit_s: float) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._kill_group()

        timer = threading.Timer(limit_s, expire)
        timer.daemon = True
        timer.start()
        try:
            if line is not None:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except (OSError, ValueError):  # the pipe broke, or `close` shut it
            reply = ""
        finally:
            timer.cancel()
            timer.join()  # from here on the kill has happened or never will
        return json.loads(reply) if reply.endswith("\n") and not expired.is_set() else None


class Workers:
    """A bounded set of workers for any number of threads; started when needed, replaced when dead.

    Args:
        num_workers: processes at most.
        deadline_s: CPU seconds per answer.
        memory_bytes: memory that one answer may take.
        grader: ``math``, or a verifier's name.
    """

    def __init__(self, num_workers: int, deadline_s: float, memory_bytes: int, grader: str = MATH) -> None:
        self._worker_arguments = (deadline_s, memory_bytes, grader)
        self._slots = threading.BoundedSemaphore(num_workers)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._is_closed = False
        self._owner = os.getpid()
        self.judge: Callable[[Request], Verdict] = self._judge
        if grader == MATH:  # a verifier's texts may be long, and need not give the same verdict twice
            self.judge = lru_cache(_CACHED_VERDICTS)(self._judge)

    @property
    def num_processes(self) -> int:
        return sum(worker.is_alive for worker in list(self._all))

    def start(self) -> None:
        """Starts a worker before it is needed, so that what is wrong with it shows at once.

        Raises:
            GradingError: see `Worker.wait_until_ready`.
        """
        worker = self._take()
        if worker is not None:
            self._give_back(worker)

    def _judge(self, request: Request) -> Verdict:
        with self._slots:
            worker = self._take()
            if worker is None:
                return Verdict(Grade.TIMEOUT)
            verdict = worker.ask_for_verdict(request)
            self._give_back(worker)
        return verdict

    def _take(self) -> Worker | None:
        """An idle worker or a new one; None after `close`."""
        with self._lock:
            if self._is_closed:
                return None
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive:
                    return worker
                self._all.discard(worker)
            worker = Worker(*self._worker_arguments)
            self._all.add(worker)  # before it is ready, so that `close` ends it in any case
        try:
            worker.wait_until_ready()
        except GradingError:
            with self._lock:
                self._all.discard(worker)
                if self._is_closed:
                    return None
            raise
        return worker

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            if worker.is_alive and not self._is_closed:
                self._idle.append(worker)
                return
            self._all.discard(worker)
        worker.kill()

    def close(self) -> None:
        """Kills all workers; what they were asked becomes TIMEOUT."""
        if os.getpid() != self._owner:
            return  # a forked child, whose parent still needs them
        with self._lock:
            self._is_closed = True
            workers, self._all, self._idle = list(self._all), set(), []
        for worker in workers:
            worker.kill()
