"""Algebra on two answers, by Math-Verify; only ever called in a worker process.

Departures from Math-Verify's own way:
1. Only its LaTeX reader is used; the other one hands model text to ``parse_expr``, which evaluates it.
2. Its time limits are off: they need the main thread's alarm and do not stop a hang.
3. An equation counts as its right side only where the left side is a name: ``2x+1=7`` is not 7.
4. Equal constants must also agree in relative size: rounding to six decimals makes 2**-99 equal 2**-98.
"""

from __future__ import annotations

from typing import Any

EXACT_TOLERANCE = 1e-12
FLOAT_TOLERANCE = 1e-6


def is_equal_by_algebra(answer: str, gold: str) -> bool:
    """Whether two LaTeX expressions are the same mathematical object; False where one cannot be read.

    Raises:
        MemoryError: the process's memory cap was reached.
    """
    from math_verify import verify

    try:
        left, right = _parse(answer), _parse(gold)
        if not left or not right or not _comparable(left[0], right[0]):
            return False
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


def _comparable(left: Any, right: Any) -> bool:
    import sympy

    if isinstance(left, sympy.Eq) == isinstance(right, sympy.Eq):
        return True
    equation = left if isinstance(left, sympy.Eq) else right
    return all(factor.is_Symbol or factor.is_Function for factor in sympy.Mul.make_args(equation.lhs))


def _constants_agree(left: Any, right: Any) -> bool:
    import sympy

    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr) and left.is_number and right.is_number):
        return True
    if left.is_finite is False or right.is_finite is False:
        return True
    tolerance = FLOAT_TOLERANCE if left.has(sympy.Float) or right.has(sympy.Float) else EXACT_TOLERANCE
    scale = max(abs(sympy.N(left, 30)), abs(sympy.N(right, 30)))
    return bool(abs(sympy.N(left - right, 30)) <= tolerance * scale)
