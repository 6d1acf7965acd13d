"""What whoever asks for grades needs of a grader; `GradingPool` is the real one."""

from __future__ import annotations

from typing import Protocol

from pipeline_lib.grading.workers.verifier import Verdict
from pipeline_lib.types import Grade


class Grader(Protocol):
    """Grades answers off the engine's path: submit now, collect when done, in any order."""

    @property
    def num_in_flight(self) -> int:
        """Answers submitted and not yet returned by `poll`."""
        ...

    def submit(self, key: str, prediction: str, gold: str) -> None:
        """Queues one answer; `prediction` is the policy's raw text."""
        ...

    def poll(self, *, block: bool) -> list[tuple[str, Grade]]:
        """Finished (key, grade) pairs; with `block`, waits for at least one when any is in flight."""
        ...

    def poll_verdicts(self, *, block: bool) -> list[tuple[str, Verdict]]:
        """Like `poll`, with what each answer is worth beside its grade: here 1 where it is CORRECT, else 0."""
        return [(key, Verdict.of(grade)) for key, grade in self.poll(block=block)]
