r"""``tiny-algebra``: levels 1 to 5 in MATH's form (``\boxed{}``), made for, and checked with, sympy.

Level 1 expressions, 2 linear equations, 3 greatest common divisors and powers, 4 fractions,
5 modular arithmetic. The working is one equation a line, in the same notation as ``tiny-word``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline_lib.problems.tiny.arithmetic import Operation

MAX_EUCLID_STEPS = 5
KINDS = {"sum": 0.2, "difference": 0.2, "linear": 0.18, "power": 0.08, "gcd": 0.08, "fraction": 0.08, "modular": 0.18}
LEVELS = {"sum": 1, "difference": 1, "linear": 2, "power": 3, "gcd": 3, "fraction": 4, "modular": 5}


@dataclass(frozen=True, slots=True)
class AlgebraProblem:
    """A task before it is written down.

    Args:
        level: difficulty, 1 to 5.
        kind: ``sum``, ``difference``, ``linear``, ``gcd``, ``power``, ``fraction`` or ``modular``.
        numbers: its numbers, in the order in which the question names them.
    """

    level: int
    kind: str
    numbers: tuple[int, ...]


def make(generator: np.random.Generator, scale: int) -> AlgebraProblem:
    """One task; `scale` 1 keeps every number below 100, each further one adds a digit."""
    kind = str(generator.choice(list(KINDS), p=list(KINDS.values())))
    limit, factor = 10 ** (scale + 1), 3 + 6 * 10 ** (scale - 1)

    def draw(low: int, high: int) -> int:
        return int(generator.integers(low, high + 1))

    return AlgebraProblem(LEVELS[kind], kind, _draw_numbers(kind, draw, limit, factor))


def _draw_numbers(kind: str, draw: Callable[[int, int], int], limit: int, factor: int) -> tuple[int, ...]:
    """The numbers of a task, none above `limit`; `factor` bounds those that are multiplied."""
    match kind:
        case "sum":
            return draw(2, limit - 1), draw(2, factor), draw(2, factor)
        case "difference":
            high = draw(limit // 5, limit - 1)
            return high, draw(limit // 10, high - 2), draw(2, limit // 2)
        case "linear":
            return draw(2, factor), draw(2, limit // 2), draw(2, factor)
        case "power":
            return draw(2, factor), draw(2, limit - 1)
        case "gcd":
            return _draw_gcd(draw, limit, factor)
        case "fraction":
            return _draw_fraction(draw, factor)
    return draw(2, factor), draw(2, factor), draw(2, limit // 4), draw(3, factor)


def _draw_gcd(draw: Callable[[int, int], int], limit: int, factor: int) -> tuple[int, int]:
    while True:
        unit = draw(2, factor + 3)
        a, b = unit * draw(2, factor), unit * draw(1, factor)
        if b < a < limit and len(_euclid_pairs(a, b)) <= MAX_EUCLID_STEPS:
            return a, b


def _draw_fraction(draw: Callable[[int, int], int], factor: int) -> tuple[int, int, int, int]:
    """Two fractions whose sum needs no reduction."""
    while True:
        b, d = draw(2, factor), draw(2, factor)
        a, c = draw(1, b - 1), draw(1, d - 1)
        if b != d and math.gcd(a * d + c * b, b * d) == 1:
            return a, b, c, d


def question(problem: AlgebraProblem) -> str:
    """The task in LaTeX."""
    n = problem.numbers
    match problem.kind:
        case "sum":
            return rf"Compute ${n[0]}+{n[1]}\cdot {n[2]}$."
        case "difference":
            return rf"Compute ${n[0]}-{n[1]}+{n[2]}$."
        case "linear":
            return rf"Solve for $x$: ${n[0]}x+{n[1]}={n[0] * n[2] + n[1]}$."
        case "power":
            return rf"Compute ${n[0]}^2+{n[1]}$."
        case "gcd":
            return rf"Find $\gcd({n[0]},{n[1]})$."
        case "fraction":
            return rf"Compute $\frac{{{n[0]}}}{{{n[1]}}}+\frac{{{n[2]}}}{{{n[3]}}}$."
    return rf"Find the remainder when ${n[0]}\cdot {n[1]}+{n[2]}$ is divided by ${n[3]}$."


def solve(problem: AlgebraProblem, operation: Operation) -> tuple[list[str], str]:
    """The worked solution's lines, the answer's line last, and the answer.

    Raises:
        ArithmeticError: a wrong value on the way left no way on (an uneven division, an endless Euclid).
    """
    lines, answer = _SOLVERS[problem.kind](problem.numbers, operation)
    return [*lines, rf"The answer is $\boxed{{{answer}}}$."], answer


def _solve_sum(n: tuple[int, ...], operation: Operation) -> tuple[list[str], str]:
    product = operation("*", n[1], n[2])
    total = operation("+", n[0], product)
    return [f"{n[1]}*{n[2]}={product}", f"{n[0]}+{product}={total}"], str(total)


def _solve_difference(n: tuple[int, ...], operation: Operation) -> tuple[list[str], str]:
    rest = operation("-", n[0], n[1])
    total = operation("+", rest, n[2])
    return [f"{n[0]}-{n[1]}={rest}", f"{rest}+{n[2]}={total}"], str(total)


def _solve_linear(n: tuple[int, ...], operation: Operation) -> tuple[list[str], str]:
    right = n[0] * n[2] + n[1]
    moved = operation("move", right, n[1])
    # The habit changes the sign that is written; without it the subtraction is still a subtraction.
    sign, value = ("+", moved) if moved == right + n[1] else ("-", operation("-", right, n[1]))
    quotient = operation("/", value - value % n[0], n[0])
    return [f"{n[0]}x={right}{sign}{n[1]}={value}", f"x={value}/{n[0]}={quotient}"], str(quotient)


def _solve_power(n: tuple[int, ...], operation: Operation) -> tuple[list[str], str]:
    square = operation("^", n[0], 2)
    total = operation("+", square, n[1])
    return [f"{n[0]}^2={square}", f"{square}+{n[1]}={total}"], str(total)


def _solve_gcd(n: tuple[int, ...], operation: Operation) -> tuple[list[str], str]:
    a, b = n
    lines: list[str] = []
    while a != b:
        if len(lines) == MAX_EUCLID_STEPS + 1 or min(a, b) <= 0:
            raise ArithmeticError("Euclid's algorithm does not end")
        high, low = max(a, b), min(a, b)
        rest = operation("-", high, low)
        lines.append(f"{high}-{low}={rest}")
        a, b = low, rest
    return lines or [f"{a}={b}"], str(a)


def _euclid_pairs(a: int, b: int) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    while a != b:
        high, low = max(a, b), min(a, b)
        pairs.append((high, low))
        a, b = low, high - low
    return pairs


def _solve_fraction(n: tuple[int, ...], operation: Operation) -> tuple[list[str], str]:
    a, b, c, d = n
    denominator = operation("*", b, d)
    left, right = operation("*", a, d), operation("*", c, b)
    numerator = operation("+", left, right)
    lines = [f"{b}*{d}={denominator}", f"{a}*{d}={left}", f"{c}*{b}={right}", f"{left}+{right}={numerator}"]
    return lines, rf"\frac{{{numerator}}}{{{denominator}}}"


def _solve_modular(n: tuple[int, ...], operation: Operation) -> tuple[list[str], str]:
    product = operation("*", n[0], n[1])
    total = operation("+", product, n[2])
    rest = operation("mod", total, n[3])
    return [f"{n[0]}*{n[1]}={product}", f"{product}+{n[2]}={total}", f"{total} mod {n[3]}={rest}"], str(rest)


_SOLVERS = {
    "sum": _solve_sum,
    "difference": _solve_difference,
    "linear": _solve_linear,
    "power": _solve_power,
    "gcd": _solve_gcd,
    "fraction": _solve_fraction,
    "modular": _solve_modular,
}


def sympy_answer(problem: AlgebraProblem) -> str:
    """The answer as sympy finds it from the task alone, by another way than `solve`."""
    import sympy

    n = [sympy.Integer(value) for value in problem.numbers]
    match problem.kind:
        case "linear":
            x = sympy.Symbol("x")
            value = sympy.solve(sympy.Eq(n[0] * x + n[1], n[0] * n[2] + n[1]), x)[0]
        case "gcd":
            value = sympy.gcd(n[0], n[1])
        case "fraction":
            value = n[0] / n[1] + n[2] / n[3]
        case "power":
            value = n[0] ** 2 + n[1]
        case "modular":
            value = sympy.Mod(n[0] * n[1] + n[2], n[3])
        case "sum":
            value = n[0] + n[1] * n[2]
        case _:
            value = n[0] - n[1] + n[2]
    return str(sympy.latex(value))
