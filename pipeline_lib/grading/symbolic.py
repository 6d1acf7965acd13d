"""Algebra on two answers, by Math-Verify; only ever called in a worker process.

Departures from Math-Verify's own way:
1. Only its LaTeX reader is used; the other one hands model text to ``parse_expr``, which evaluates it.
2. Its time limits are off: they need the main thread's alarm and do not stop a hang.
3. An equation counts as its right side only where the left side is a name: ``2x+1=7`` is not 7.
4. Values decide first. Two expressions whose values differ at a point, relative to their size, are
   different (rounding to six decimals makes 2**-99 equal 2**-98); two whose difference expands to 0, or has a
   numerator that does, are equal. Only the rest is simplified, which is where the time goes.
   Two polynomial equations are the same where they have the same zeros, complex ones too; nothing is solved.
5. The letter i is the imaginary unit, and a decimal is the fraction that it writes.
"""

from __future__ import annotations

from typing import Any

from pipeline_lib.grading.conventions import MIN_ROUNDED_DECIMALS
from pipeline_lib.grading.exact import parse_number

TOLERANCE = 1e-12
MAX_DEGREE = 24  # of polynomials that are compared by their square-free parts
POINTS = (2, 11)
"""Where two expressions are evaluated: a letter's value is the logarithm of this plus the letter's code."""


def is_equal_by_algebra(answer: str, gold: str, *, rounded: bool = False) -> bool:
    """Whether two LaTeX expressions are the same mathematical object; False where one cannot be read.

    Args:
        answer: the policy's, without the delimiters around it.
        gold: the gold answer, without the delimiters around it.
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
        equal = _equal_by_value(left[0], right[0])
        if equal is None:
            equal = bool(verify(right, left, timeout_seconds=None))
        return equal
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


def _equal_by_value(left: Any, right: Any) -> bool | None:
    """Whether two expressions, tuples or intervals are the same, where that shows without simplification.

    False where their values at a point differ, True where their difference expands to 0, else None.
    """
    import sympy

    if (
        isinstance(left, (sympy.Tuple, sympy.Interval))
        and type(left) is type(right)
        and len(left.args) == len(right.args)
    ):
        verdicts = [_equal_by_value(*pair) for pair in zip(left.args, right.args, strict=True)]
        return False if False in verdicts else None if None in verdicts else True
    if isinstance(left, sympy.logic.boolalg.BooleanAtom):
        return bool(left == right)
    if isinstance(left, sympy.Eq) and isinstance(right, sympy.Eq):
        return _same_zeros(*_at_common_symbols(left.lhs - left.rhs, right.lhs - right.rhs))
    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)) or left.is_infinite or right.is_infinite:
        return None
    left, right = _at_common_symbols(left, right)
    for point in POINTS:
        ours, theirs = (_value_at(side, point) for side in (left, right))
        if ours is None or theirs is None:
            return None
        if abs(ours - theirs) > TOLERANCE * max(abs(ours), abs(theirs)):
            return False
    difference = sympy.expand(left - right)
    if difference == 0 or sympy.expand(sympy.fraction(sympy.together(difference))[0]) == 0:
        return True
    return None


def _same_zeros(left: Any, right: Any) -> bool | None:
    """Whether two polynomials vanish at the same points; None where one is no polynomial with rational coefficients.

    They do where their square-free parts are the same up to a factor (Hilbert's Nullstellensatz).
    """
    import sympy

    try:
        polynomials = [sympy.Poly(side) for side in (left, right)]
    except sympy.polys.polyerrors.BasePolynomialError:
        return None
    for p in polynomials:
        is_rational = p.domain.is_ZZ or p.domain.is_QQ
        is_plain = all(letter.is_Symbol or letter.is_Function for letter in p.gens)  # 1/x and sqrt(x) are letters, too
        if not is_rational or not is_plain or p.total_degree() > MAX_DEGREE:
            return None
    letters = [set(p.gens) for p in polynomials]
    if letters[0] != letters[1]:
        return False
    order = sorted(letters[0], key=str)
    left, right = (sympy.Poly(p.as_expr(), *order, domain="QQ").sqf_part().monic() for p in polynomials)
    return bool(left == right)


def _at_common_symbols(left: Any, right: Any) -> tuple[Any, Any]:
    """Both sides over the same positive symbols: the reader gives equal letters different assumptions."""
    import sympy

    def rename(side: Any) -> Any:
        return side.xreplace({symbol: sympy.Symbol(symbol.name, positive=True) for symbol in side.free_symbols})

    return rename(left), rename(right)


def _value_at(side: Any, point: int) -> Any | None:
    """A number of 30 digits; None where there is none, as for a limit."""
    import sympy

    # Algebraically independent enough: no expression that people write vanishes there by chance.
    values = {symbol: sympy.log(point + sum(map(ord, symbol.name))) for symbol in side.free_symbols}
    value = sympy.N(side.subs(values), 30)
    return value if value.is_number and value.is_finite else None
