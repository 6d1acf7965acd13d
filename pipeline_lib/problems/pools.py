"""Splits as sequences of problems: read, or generated when they are looked up.

One idea: nobody who draws can tell the two apart. A split is kept apart from other questions by leaving problems out;
a generated one has others in their place, from beyond its end, so what is drawn besides does not move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from typing import overload

from pipeline_lib.problems.questions import normal_question
from pipeline_lib.problems.rows import BadRow, ProblemsError
from pipeline_lib.problems.tiny import POOL_SIZE, make_problem
from pipeline_lib.types import Problem

Questions = Mapping[str, Set[str]]
"""Normal questions by the name of the set that they stand in, as ``the test set gsm8k``."""


class GeneratedProblems(Sequence[Problem]):
    """A tiny world's split: `POOL_SIZE` problems, each made when it is looked up.

    Args:
        dataset: the world, as ``tiny-word@2``.
        split: one of its splits.
        taken: normal questions that it must not ask.
    """

    def __init__(self, dataset: str, split: str, taken: Set[str] = frozenset()) -> None:
        make_problem(dataset, split, 0)  # an unknown name fails here, not in the first draw
        self.dataset, self.split, self._taken = dataset, split, taken

    def __len__(self) -> int:
        return POOL_SIZE

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(POOL_SIZE)[index]]
        number = range(POOL_SIZE)[index]
        while normal_question((problem := make_problem(self.dataset, self.split, number)).question) in self._taken:
            number += POOL_SIZE
        return problem


class ProblemPool(Sequence[Problem]):
    """A split of a dataset, and what of it could not be used.

    Args:
        name: the set's name and the split, ``gsm8k/train``.
        problems: in the order of the files, no question twice; lazy for the tiny worlds.
        skipped: the bad rows, in the order of the files.
        validation: a validation split of its own; None where it has to be cut from this one.
        left_out: one line for each reason for which good rows were left out.
        places: file and row of each problem that was read.
    """

    def __init__(
        self,
        name: str,
        problems: Sequence[Problem],
        skipped: tuple[BadRow, ...] = (),
        validation: ProblemPool | None = None,
        left_out: tuple[str, ...] = (),
        places: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.name = name
        self.skipped = skipped
        self.validation = validation
        self.left_out = left_out
        self._problems, self._places = problems, places

    def __len__(self) -> int:
        return len(self._problems)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | Sequence[Problem]:
        return self._problems[index]

    @property
    def is_generated(self) -> bool:
        """Whether its problems are made when they are looked up."""
        return isinstance(self._problems, GeneratedProblems)

    @cached_property
    def questions(self) -> frozenset[str]:
        """The normal form of every question; of a generated pool that is all of `POOL_SIZE`."""
        return frozenset(normal_question(problem.question) for problem in self._problems)

    def with_validation(self, validation: ProblemPool | None) -> ProblemPool:
        """The same pool with another validation split."""
        return ProblemPool(self.name, self._problems, self.skipped, validation, self.left_out, self._places)

    def apart_from(self, others: Questions) -> ProblemPool:
        """The pool without the questions of other sets; `left_out` counts and names what it has lost.

        Raises:
            ProblemsError: nothing is left.
        """
        if isinstance(self._problems, GeneratedProblems):
            taken = frozenset().union(*others.values())
            generated = GeneratedProblems(self._problems.dataset, self._problems.split, taken)
            return ProblemPool(self.name, generated, self.skipped, self.validation, self.left_out)
        homes = [_home(problem, others) for problem in self._problems]
        kept = [i for i, home in enumerate(homes) if home is None]
        names = [name for name in others if name in homes]
        if not kept:
            raise ProblemsError(
                f"all {len(self)} questions of {self.name} stand in {' or '.join(names)}: nothing is left; name other "
                "files"
            )
        problems, places = tuple(self._problems[i] for i in kept), [self._places[i] for i in kept if self._places]
        lines = [self._lost_to(name, homes) for name in names]
        return ProblemPool(self.name, problems, self.skipped, self.validation, (*self.left_out, *lines), places)

    def _lost_to(self, name: str, homes: list[str | None]) -> str:
        first = homes.index(name)
        place = "{}, row {}".format(*self._places[first]) if self._places else self._problems[first].problem_id
        return (
            f"{self.name}: {homes.count(name)} of {len(self)} questions stand in {name} too and are left out; "
            f"the first: {place}"
        )

    def notes(self, drawn: Sequence[Problem]) -> list[str]:
        """All that was left out of the pool, and what was drawn in place of questions that stand in other sets."""
        if not self.is_generated:
            return list(self.left_out)
        numbers = [int(problem.problem_id.rpartition("/")[2]) for problem in drawn]
        replaced = [number % POOL_SIZE for number in numbers if number >= POOL_SIZE]
        if not replaced:
            return list(self.left_out)
        line = (
            f"{self.name}: {len(replaced)} of {len(drawn)} questions stand in another set too and others were drawn in "
            f"their place; the first: {self.name}/{replaced[0]:05d}"
        )
        return [*self.left_out, line]


def _home(problem: Problem, others: Questions) -> str | None:
    """The first of the other sets that asks the same."""
    question = normal_question(problem.question)
    return next((name for name, questions in others.items() if question in questions), None)
