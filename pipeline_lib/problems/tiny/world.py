"""The generated worlds as datasets: unlimited, seeded, with splits that cannot overlap.

One idea: a problem *is* its id. ``tiny-word/train/00017`` regenerates question, answer, worked
solution and oracle, so nothing is stored and any process can look any problem up. A question's
split follows from its own hash, so no question can stand in two splits.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.config import ConfigError
from pipeline_lib.problems.tiny import algebra, everyday, word
from pipeline_lib.problems.tiny.arithmetic import Operation, compute
from pipeline_lib.seeding import derive_generator
from pipeline_lib.types import Problem, SearchTree

FAMILIES: dict[str, Any] = {"tiny-word": word, "tiny-algebra": algebra, "tiny-arithmetic": everyday}
PRETRAINED = ("tiny-word", "tiny-algebra")
"""Families that a tiny base is pretrained on; the others are for models that know English."""
VERSIONS = {"tiny-arithmetic": "2"}
"""Of a family whose problems were once others, by which results are told apart from those on the earlier ones."""
SPLITS = ("pretrain", "train", "validation", "test")
SPLIT_BUCKETS = {"pretrain": range(0, 45), "train": range(45, 80), "validation": range(80, 90), "test": range(90, 100)}
WORLD_SEED = 2501
POOL_SIZE = 100_000
"""Problems that a split is said to have where a length is needed."""


@dataclass(frozen=True, slots=True)
class WorkedProblem:
    """A problem with its canonical worked solution.

    Args:
        problem: what is asked.
        lines: one per step, the answer's line last.
        structure: the problem before it was written down, an `AlgebraProblem`, a `WordProblem` or an `EverydayProblem`.
    """

    problem: Problem
    lines: tuple[str, ...]
    structure: Any


def is_tiny(dataset: str) -> bool:
    """Whether `dataset` names a generated family, with or without ``@scale``."""
    return dataset.partition("@")[0] in FAMILIES


def version_of(dataset: str) -> str | None:
    """Of a generated family's problems; None for those that were never others."""
    return VERSIONS.get(dataset.partition("@")[0])


def _parse(dataset: str) -> tuple[str, int]:
    family, _, scale = dataset.partition("@")
    if family not in FAMILIES or not (scale or "1").isdigit() or int(scale or 1) < 1:
        raise ConfigError(f"dataset {dataset!r}: expected {' or '.join(FAMILIES)}, with @2, @3 … for larger numbers")
    return family, int(scale or 1)


@lru_cache(maxsize=20_000)
def make_worked_problem(dataset: str, split: str, index: int) -> WorkedProblem:
    """Problem number `index` of a split with its worked solution.

    Raises:
        ConfigError: an unknown family or split.
    """
    family, scale = _parse(dataset)
    if split not in SPLIT_BUCKETS:
        raise ConfigError(f"split {split!r} of {dataset}: expected one of {', '.join(SPLITS)}")
    module = FAMILIES[family]
    generator = derive_generator(WORLD_SEED, dataset, split, index)
    while True:
        structure = module.make(generator, scale)
        question = module.question(structure)
        if _bucket(question) in SPLIT_BUCKETS[split]:
            break
    lines, answer = module.solve(structure, compute)
    steps, level = {"steps": str(len(lines) - 1)}, {"level": str(getattr(structure, "level", ""))}
    operations = {"operations": str(getattr(structure, "kind", ""))}
    metadata = {"tiny-word": steps, "tiny-algebra": level}.get(family, level | steps | operations)
    problem = Problem(f"{dataset}/{split}/{index:05d}", question, answer, dataset, metadata)
    return WorkedProblem(problem, tuple(lines), structure)


def make_problem(dataset: str, split: str, index: int) -> Problem:
    """Problem number `index` of a split: ``make_problem("tiny-word", "train", 17)``."""
    return make_worked_problem(dataset, split, index).problem


def write_solution(worked: WorkedProblem, operation: Operation) -> str:
    """The worked solution under another arithmetic; what a corpus with misconceptions is made of.

    Raises:
        ArithmeticError: a wrong value on the way left no way on.
    """
    module = FAMILIES[worked.problem.dataset.partition("@")[0]]
    lines, _ = module.solve(worked.structure, operation)
    return "\n".join(lines)


def _bucket(question: str) -> int:
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") % 100


_SPACED = re.compile(r"(?<=\d) *([-+*/=]) *(?=\d)")
_EQUATION = re.compile(r"[0-9x+*/^=-]+(?: mod [0-9]+=[0-9]+)?")


def _equation_or_answer(line: str) -> str:
    r"""What of a line the oracle looks at: its equation or final answer, operands of + and * in order.

    Example: ``"Mia has 5+12=17 pens."`` and ``"12+5=17"`` give the same.
    """
    if "####" in line:
        return "answer " + line.partition("####")[2].strip()
    if r"\boxed" in line:
        return "answer " + line.partition(r"\boxed{")[2].rpartition("}")[0]
    found = max(_EQUATION.findall(line), key=len, default="")
    left, separator, value = found.rpartition("=")
    for operator in "+*":
        operands = left.split(operator)
        if len(operands) == 2 and all(part.isdigit() for part in operands):
            left = operator.join(sorted(operands))
    return left + separator + value


def steps_are_right(tree: SearchTree) -> NDArray[np.bool_]:
    """`[N]` bool: the oracle, whether each step of a tiny problem's tree is right; True for the root."""
    dataset, split, index = tree.problem_id.split("/")
    worked = make_worked_problem(dataset, split, int(index))
    read = _spaced_equation_or_answer if isinstance(worked.structure, everyday.EverydayProblem) else _equation_or_answer
    right = [read(line) for line in worked.lines]
    return np.array(
        [
            depth == 0 or (depth <= len(right) and read(step) == right[depth - 1])
            for step, depth in zip(tree.steps, tree.depths.tolist(), strict=True)
        ]
    )


def _spaced_equation_or_answer(line: str) -> str:
    """The same of a line whose author may write ``12 + 5 = 17``."""
    return _equation_or_answer(_SPACED.sub(r"\1", line))
