"""What a worker compares: formulas by real values, and what `formulas.reader` does not read by Math-Verify.

Departures from Math-Verify's own way:
1. It only sees sums, integrals, limits, products of matrices and the like; all else is read and compared in `formulas`.
2. Only its LaTeX reader is used; the other one hands model text to ``parse_expr``, which evaluates it.
3. Its time limits are off: they need the main thread's alarm and do not stop a hang.
4. It lower-cases letters and removes units: where both sides do not have the same letters, of the same case, it is
   not asked.
5. It rounds: two constants count as equal only where they agree to thirty digits.
"""

from __future__ import annotations

import re
from typing import Any

from pipeline_lib.grading.conventions import DEFAULT, MIN_ROUNDED_DECIMALS, Conventions
from pipeline_lib.grading.formulas import real_values
from pipeline_lib.grading.formulas.equality import Equality
from pipeline_lib.grading.formulas.exact_values import InexactError, UndefinedError, rational_value
from pipeline_lib.grading.formulas.nodes import Node, UnreadableError, UnsupportedError
from pipeline_lib.grading.formulas.polynomials import same_zeros
from pipeline_lib.grading.formulas.reader import read
from pipeline_lib.grading.formulas.tokens import tokens_of

_DIGITS = 40
_BOUND = re.compile(r"\\(?:sum|prod|lim)\s*_\s*\{?\s*([A-Za-z])\s*(?:=|\\to|\\rightarrow)")


def is_equal_by_algebra(answer: str, gold: str, conventions: Conventions = DEFAULT) -> bool:
    """Whether two LaTeX expressions are the same mathematical object; False where one cannot be read.

    Args:
        answer: the policy's, normalised.
        gold: the gold answer, normalised.
        conventions: what counts as equal where opinions differ.

    Raises:
        MemoryError: the process's memory cap was reached.
    """
    try:
        left, right = (read(side, mixed_numbers=conventions.mixed_numbers) for side in (answer, gold))
        return Equality(conventions, RealValues(conventions)).same(left, right)
    except UnsupportedError:
        return _is_equal_by_math_verify(answer, gold)
    except (UnreadableError, InexactError, UndefinedError, real_values.TooLargeError):
        return False


def is_readable(gold: str, conventions: Conventions = DEFAULT) -> bool:
    """Whether a gold is a formula that an answer could have been compared with."""
    try:
        read(gold, mixed_numbers=conventions.mixed_numbers)
        return True
    except UnsupportedError:
        return bool(_parse(gold))
    except UnreadableError:
        return False


class RealValues:
    """Real values under conventions; implements `formulas.equality.RealComparison`."""

    def __init__(self, conventions: Conventions) -> None:
        self._conventions = conventions

    def are_equal(self, left: Node, right: Node) -> bool:
        """Whether two expressions agree wherever both have a value; False where that takes too large numbers."""
        try:
            return real_values.are_equal(
                left,
                right,
                positive_letters=self._conventions.positive_letters,
                log_base=self._conventions.log_base,
            )
        except (InexactError, real_values.TooLargeError):
            return False

    def rounds(self, decimal: Node, value: Node) -> bool:
        """Whether `decimal` is the constant `value`, rounded to the digits that are written."""
        inside = decimal.parts[0] if decimal.kind == "negative" else decimal
        if inside.kind != "decimal" or rational_value(inside.parts[0]) < MIN_ROUNDED_DECIMALS:
            return False
        digits, written = int(rational_value(inside.parts[0])), rational_value(decimal)
        try:
            exact = real_values.constant_value(value, _DIGITS + digits, log_base=self._conventions.log_base)
        except (InexactError, real_values.TooLargeError):
            return False
        return exact is not None and real_values.is_within(exact, written, digits)

    def same_ratio(self, left: Node, right: Node) -> int | None:
        """The sign of the constant that `left` is of `right`; None where it is none."""
        try:
            return real_values.same_ratio(left, right, log_base=self._conventions.log_base)
        except (InexactError, real_values.TooLargeError):
            return None

    def same_zeros(self, left: Node, right: Node) -> bool:
        """Whether two polynomials vanish at the same points."""
        return same_zeros(left, right)


def _is_equal_by_math_verify(answer: str, gold: str) -> bool:
    from math_verify import verify

    letters = _letters(answer)
    if letters != _letters(gold) or len({letter.lower() for letter in letters}) < len(letters):
        return False
    try:
        left, right = _parse(answer), _parse(gold)
        if not left or not right or (type(left[0]) is not type(right[0]) and _is_boolean(left[0], right[0])):
            return False
        if _differ_in_value(left[0], right[0]):
            return False
        return bool(verify(right, left, timeout_seconds=None))
    except MemoryError:
        raise
    except Exception:
        # A reader of arbitrary text raises arbitrary errors; whatever it stumbles over is not the gold.
        return False


def _letters(text: str) -> set[str]:
    """The free letters of a formula: those that a sum, a limit or an integral binds are left out."""
    bound = set(_BOUND.findall(text)) | (set(re.findall(r"d\s*([A-Za-z])", text)) | {"d"} if r"\int" in text else set())
    return {token.text for token in tokens_of(text) if token.kind == "letter"} - bound


def _is_boolean(*sides: Any) -> bool:
    import sympy

    return any(isinstance(side, sympy.logic.boolalg.Boolean) for side in sides)


def _differ_in_value(left: Any, right: Any) -> bool:
    """Whether two constants differ within thirty digits, relative to their size: Math-Verify looks at six decimals."""
    import sympy

    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr) and left.is_number and right.is_number):
        return False
    ours, theirs = (sympy.N(side, 30) for side in (left, right))
    return bool(abs(ours - theirs) > sympy.Float("1e-25") * max(abs(ours), abs(theirs)))


def _parse(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse
    from math_verify.parser import NormalizationConfig

    plain = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none")
    config = LatexExtractionConfig(normalization_config=plain)
    try:
        parsed: list[Any] = parse(
            text if "$" in text else f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=None
        )
    except MemoryError:
        raise
    except Exception:
        return []
    return parsed
