"""The corpus that a tiny base is pretrained on: worked solutions that hold misconceptions."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline_lib.problems.tiny.arithmetic import arithmetic_with_misconceptions
from pipeline_lib.problems.tiny.world import PRETRAINED, make_worked_problem, write_solution
from pipeline_lib.seeding import derive_generator


def pretraining_corpus(seed: int, *, scale: int = 1, start: int = 0) -> Iterator[tuple[str, str]]:
    """Endless (question, solution) pairs from the pretrain split, the families in turn.

    A solution whose wrong values left no way on is drawn again. Pair i depends on `seed` and i
    alone, so a resumed pretraining goes on with ``start=i``.
    """
    suffix = f"@{scale}" if scale > 1 else ""
    families = [family + suffix for family in PRETRAINED]
    index = start
    while True:
        family = families[index % len(families)]
        worked = make_worked_problem(family, "pretrain", index // len(families))
        operation = arithmetic_with_misconceptions(derive_generator(seed, "corpus", index))
        solution: str | None = None
        while solution is None:
            try:
                solution = write_solution(worked, operation)
            except ArithmeticError:
                continue
        yield worked.problem.question, solution
        index += 1
