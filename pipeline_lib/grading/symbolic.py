"""Algebra on two answers, by Math-Verify; only ever called in a worker process.

Departures from Math-Verify's own way:
1. Only its LaTeX reader is used; the other one hands model text to ``parse_expr``, which evaluates it.
2. Its time limits are off: they need the main thread's alarm and do not stop a hang.
3. An equation counts as its right side only where the left side is a name: ``2x+1=7`` is not 7.
4. Equal constants must also agree in relative size: rounding to six decimals makes 2**-99 equal 2**-98.
"""

from __future__ import annotations

from typing import Any

from pipeline_lib.grading.conventions import MIN_ROUNDED_DECIMALS
from pipeline_lib.grading.exact import parse_number

EXACT_TOLERANCE = 1e-12
FLOAT_TOLERANCE = 1e-6


def is_equal_by_algebra(answer: str, gold: str, *, rounded: bool = False) -> bool:
    """Whether two LaTeX expressions are the same mathematical object; False where one cannot be read.

    Args:
        answer: without delimiters.
        gold: likewise.
        rounded: whether a decimal equals what rounds to it, see `conventions.Conventions`.

    Raises:
        MemoryError: the process's memory cap was reached.
    """
    from math_verify import verify

    try:
        left, right = (_with_imaginary_unit(_parse(side)) for side in (answer, gold))
        if not left or not right or not _comparable(left[0], right[0]):
            return False
        if rounded and (_rounds(answer, right[0]) or _rounds(gold, left[0])):
            return True
        return bool(verify(right, left, timeout_seconds=None)) and _constants_agree(left[0], right[0])
    except MemoryError:
        raise
    except Exception:
        # A reader of arbitrary text raises arbitrary errors; whatever it stumbles over is not the gold.
        return False


def _parse(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    delimited = text if "$" in text else f"${text}$"
    parsed: list[Any] = parse(
        delimited, extraction_config=[LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return parsed


def _with_imaginary_unit(parsed: list[Any]) -> list[Any]:
    """Reads the letter i as the imaginary unit, as a final answer means it."""
    import sympy

    def read(side: Any) -> Any:
        letters = [symbol for symbol in getattr(side, "free_symbols", ()) if symbol.name == "i"]
        return side.subs(dict.fromkeys(letters, sympy.I)) if letters else side

    return [read(side) for side in parsed]


def _comparable(left: Any, right: Any) -> bool:
    import sympy

    if isinstance(left, sympy.Eq) == isinstance(right, sympy.Eq):
        return True
    equation = left if isinstance(left, sympy.Eq) else right
    return all(factor.is_Symbol or factor.is_Function for factor in sympy.Mul.make_args(equation.lhs))


def _rounds(decimal: str, value: Any) -> bool:
    """Whether `decimal` is the constant `value`, rounded to the digits that are written."""
    import sympy

    number = parse_number(decimal)
    digits = (number.decimals or 0) if number else 0
    if number is None or digits < MIN_ROUNDED_DECIMALS or not (isinstance(value, sympy.Expr) and value.is_number):
        return False
    written = sympy.Rational(number.value.numerator, number.value.denominator)
    return bool(abs(sympy.N(value - written, 30)) <= sympy.Rational(1, 2 * 10**digits))


def _constants_agree(left: Any, right: Any) -> bool:
    import sympy

    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr) and left.is_number and right.is_number):
        return True
    if left.is_finite is False or right.is_finite is False:
        return True
    tolerance = FLOAT_TOLERANCE if left.has(sympy.Float) or right.has(sympy.Float) else EXACT_TOLERANCE
    scale = max(abs(sympy.N(left, 30)), abs(sympy.N(right, 30)))
    return bool(abs(sympy.N(left - right, 30)) <= tolerance * scale)
