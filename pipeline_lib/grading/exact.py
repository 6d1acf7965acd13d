r"""Numbers as exact fractions: most final answers are decided here, in microseconds.

One idea: read a number only where the whole text is one, ``\frac{3}{4}`` or ``$1,234.50 dollars``,
and refuse everything else, so that a sum, a pair or a power never passes for its first number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from pipeline_lib.grading.conventions import DEFAULT, MIN_ROUNDED_DECIMALS, Conventions
from pipeline_lib.grading.spelling import MAX_CHARS, normalise_answer, unwrap
from pipeline_lib.grading.units import unit_of, units_agree

MAX_NUMBER_CHARS = MAX_CHARS
"""Longer numbers are compared as text: exact arithmetic on them costs more than an answer is worth."""

# With commas between thousands, also as in India, or without.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)"
_SPACED = r"[1-9]\d{0,2}(?:[ ]\d{3})+(?!\d)(?:\.\d+)?"  # 10 000
_CURRENCY = r"(?:US)?[$€£¥₹]|(?:USD|EUR|GBP|JPY|INR|Rs)\b\.?|\\text\s*\{\s*(?:USD|EUR|GBP|JPY|INR|Rs|[$€£¥₹])\.?\s*\}"
_SYMBOLS = {"usd": "$", "us$": "$", "eur": "€", "gbp": "£", "jpy": "¥", "inr": "₹", "rs": "₹"}
_PLAIN = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_SIGNED = rf"[-+]?\s*{_PLAIN}"


def _operand(name: str) -> str:
    """Numerator or denominator: in braces, or one bare digit."""
    return rf"(?:\{{\s*(?P<{name}>{_SIGNED})\s*\}}|(?P<{name}_digit>\d))"


_FRACTION = rf"(?:(?P<whole>\d+)\s*)?\\frac\s*{_operand('numerator')}\s*{_operand('denominator')}"
_QUOTIENT = rf"(?:(?P<whole_before>\d+)\s+)?(?P<dividend>{_PLAIN})\s*/\s*(?P<divisor>{_PLAIN})"
_TIMES_TEN_TO = r"\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*"
_EXPONENT = rf"(?:[eE](?P<e>[-+]?\d{{1,3}})|{_TIMES_TEN_TO}(?:\{{\s*(?P<power>-?\d{{1,3}})\s*\}}|(?P<power_digit>\d)))"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[-+]?)\s*
    (?:(?P<currency>{_CURRENCY})\s*(?P<inner_sign>-?)\s*)?
    (?:
        {_FRACTION}   # \frac{{3}}{{4}}, 1\frac34
      | {_QUOTIENT}   # 3/4, 1 3/4
      | (?P<plain>{_SPACED}|{_PLAIN}){_EXPONENT}?   # 1,234.5, 1e3, 1.5\times 10^{{3}}
    )
    (?:\s*(?P<percent>%))?
    (?P<unit>.*)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value as it was written.

    Args:
        value: the number as if no percent sign and no unit followed.
        is_percent: whether a percent sign follows.
        unit: the unit of measure as `units.unit_of` names it; "" where there is none.
        decimals: digits after the decimal point; None for a fraction.
    """

    value: Fraction
    is_percent: bool = False
    unit: str = ""
    decimals: int | None = 0

    def equals(self, other: Number, conventions: Conventions = DEFAULT) -> bool:
        """Whether both are the same number under `conventions`.

        Example: ``5%`` equals 5 (the sign as a unit) and 0.05 (the sign as a factor).
        """
        if not units_agree(self.unit, other.unit, ignore_units=conventions.ignore_units):
            return False
        if self.is_percent == other.is_percent:
            return self._is(other, conventions.rounded)
        reads_unit, reads_fraction = conventions.percent != "fraction", conventions.percent != "unit"
        return (reads_unit and self._is(other, conventions.rounded)) or (
            reads_fraction and self._hundredth()._is(other._hundredth(), conventions.rounded)
        )

    def _is(self, other: Number, rounded: bool) -> bool:
        return self.value == other.value or (rounded and (self._rounds(other) or other._rounds(self)))

    def _rounds(self, other: Number) -> bool:
        """Whether this is `other`, rounded to the digits that are written here."""
        digits = self.decimals or 0
        return digits >= MIN_ROUNDED_DECIMALS and abs(self.value - other.value) <= Fraction(1, 2 * 10**digits)

    def _hundredth(self) -> Number:
        if not self.is_percent:
            return self
        return replace(self, value=self.value / 100, decimals=None if self.decimals is None else self.decimals + 2)


def parse_number(text: str, *, mixed_numbers: bool = True, is_prose: bool = False) -> Number | None:
    r"""The number that `text` is, with sign, currency, thousands commas, percent sign or trailing unit; else None.

    Integers, decimals, ``a/b``, ``\frac{a}{b}`` in all its spellings, mixed numbers, ``1.5\times 10^{3}``.
    Exponents have three digits at most.

    Args:
        text: an answer alone.
        mixed_numbers: whether ``1 1/2`` is 3/2; else it is not read here.
        is_prose: whether a letter behind a space is a unit, not a variable.

    Example: ``parse_number("-$1,234.50 dollars").value == Fraction(-2469, 2)``
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    return read_number(unwrap(normalise_answer(text), is_text=True), mixed_numbers=mixed_numbers, is_prose=is_prose)


def read_number(text: str, *, mixed_numbers: bool = True, is_prose: bool = False) -> Number | None:
    """`parse_number` for a text in normal spelling."""
    if len(text) > MAX_NUMBER_CHARS:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None or (_is_mixed(match) and not mixed_numbers):
        return None
    unit = unit_of(match["unit"], is_prose=is_prose)
    value = None if unit is None else _value(match)
    if value is None or unit is None:
        return None
    is_negative = (match["sign"] == "-") != (match["inner_sign"] == "-")
    unit = unit or _currency(match["currency"])
    return Number(-value if is_negative else value, bool(match["percent"]), unit, _decimals(match))


def _currency(text: str | None) -> str:
    if text is None:
        return ""
    name = re.sub(r"\\text|[\s{}.]", "", text).lower()
    return _SYMBOLS.get(name, name)


def _value(match: re.Match[str]) -> Fraction | None:
    """The magnitude, sign and percent sign left out; None for a division by 0."""
    if match["plain"] is not None:
        return _fraction(match["plain"]) * Fraction(10) ** _exponent(match)
    numerator = _fraction(match["numerator"] or match["numerator_digit"] or match["dividend"])
    denominator = _fraction(match["denominator"] or match["denominator_digit"] or match["divisor"])
    if denominator == 0:
        return None
    return _fraction(match["whole"] or match["whole_before"] or "0") + numerator / denominator


def _is_mixed(match: re.Match[str]) -> bool:
    return match["whole"] is not None or match["whole_before"] is not None


def _exponent(match: re.Match[str]) -> int:
    return int(match["e"] or match["power"] or match["power_digit"] or 0)


def _fraction(digits: str) -> Fraction:
    # Through Decimal: int() refuses more than 4,300 digits, Decimal is exact at any length.
    return Fraction(Decimal(re.sub(r"[,\s]", "", digits)))


def _decimals(match: re.Match[str]) -> int | None:
    """Digits after the decimal point once the exponent is applied, below 0 for 1e3; None for a fraction."""
    if match["plain"] is None:
        return None
    return len(match["plain"].partition(".")[2]) - _exponent(match)
