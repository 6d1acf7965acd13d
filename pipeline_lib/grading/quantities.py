r"""Several quantities in one answer: ``9 chickens and 10 rabbits``, ``2 hours 30 minutes``.

One idea: such an answer is never its first number. It equals the same quantities, the bare numbers in a list, and
where its measures are of one kind (time, length, mass, money) the one quantity that they add up to.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from pipeline_lib.grading.exact import Number, read_number
from pipeline_lib.grading.units import NOT_UNITS, measure_of

_FACTORS = {
    "time": {"s": 1, "min": 60, "h": 3600, "day": 86_400, "week": 604_800},
    "length": {"mm": 1, "cm": 10, "m": 1000, "km": 1_000_000},
    "inches": {"in": 1, "ft": 12, "yd": 36, "mi": 63_360},
    "mass": {"mg": 1, "g": 1000, "kg": 1_000_000, "ton": 1_000_000_000},
    "ounces": {"oz": 1, "lb": 16},
    "volume": {"ml": 1, "l": 1000},
    "dollars": {"cent": 1, "$": 100},
    "years": {"month": 1, "yr": 12},
}
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}|\\(?= )")
_AMOUNT = r"(?P<currency>[$€£]?)(?P<number>-?\d[\d,]{0,30}(?:\.\d{1,30})?(?:\s?/\s?\d{1,9})?)"
_NOUN = r"[A-Za-z][A-Za-z'.-]{0,30}(?:\s[A-Za-z][A-Za-z'.-]{0,30}){0,3}?"
_QUANTITY = re.compile(
    rf"\s*(?:(?:,|;|and\b|\+)\s*){{0,2}}{_AMOUNT}\s?(?P<noun>{_NOUN})\s*(?=,|;|\band\b|\+|\d|[$€£]|$)"
)


class Quantity(NamedTuple):
    """A number of something; `noun` is a measure's short name, or what is counted, in the singular."""

    value: Fraction
    noun: str


def read_quantities(text: str) -> tuple[Quantity, ...] | None:
    """Two quantities or more that make up the whole of an answer in normal spelling; else None.

    Example: ``read_quantities("2 hours 30 minutes") == (Quantity(Fraction(2), "h"), Quantity(Fraction(30), "min"))``
    """
    if len(text) > 300 or not re.search(r"\d", text):
        return None
    text = " ".join(_TEXT.sub(lambda m: f" {m[1] or ''} ", text).split())
    found: list[Quantity] = []
    place = 0
    while place < len(text):
        match = _QUANTITY.match(text, place)
        if match is None or match.end() == place:
            return None
        quantity = _quantity(match)
        if quantity is None:
            return None
        found.append(quantity)
        place = match.end()
    return tuple(found) if len(found) > 1 else None


def _quantity(match: re.Match[str]) -> Quantity | None:
    number, noun = read_number(match["number"]), match["noun"].lower().rstrip(".")
    if number is None or any(word in NOT_UNITS or len(word) < 2 for word in noun.split()):
        return None
    return Quantity(number.value, measure_of(noun) or noun.removesuffix("s"))


def same_quantities(left: tuple[Quantity, ...], right: tuple[Quantity, ...]) -> bool:
    """Whether two lists of quantities are the same, in any order, or add up to the same."""
    totals = [_total(side) for side in (left, right)]
    if totals[0] is not None and totals[1] is not None:
        return totals[0] == totals[1]
    return sorted(left) == sorted(right)


def equal_number(quantities: tuple[Quantity, ...], number: Number) -> bool:
    """Whether quantities add up to a number: of its unit, or without one of the largest unit among them."""
    total = _total(quantities)
    if total is None or number.is_percent:
        return False
    kind, amount = total
    unit = number.unit or max((q.noun for q in quantities), key=lambda noun: _FACTORS[kind][noun])
    return unit in _FACTORS[kind] and number.value * _FACTORS[kind][unit] == amount


def _total(quantities: tuple[Quantity, ...]) -> tuple[str, Fraction] | None:
    """What the quantities add up to in the smallest unit of their kind; None where they are of several kinds."""
    for kind, factors in _FACTORS.items():
        if all(quantity.noun in factors for quantity in quantities):
            return kind, sum((q.value * factors[q.noun] for q in quantities), Fraction(0))
    return None
