r"""Numbers as exact fractions: most final answers are decided here, in microseconds.

One idea: read a number only where the whole text is one, ``\frac{3}{4}`` or ``$1,234.50 dollars``,
and refuse everything else, so that a sum, a pair or a power never passes for its first number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

MAX_NUMBER_CHARS = 20_000
"""Longer numbers are compared as text: exact arithmetic on them costs more than an answer is worth."""

# fmt: off
NOT_UNITS = frozenset({
    "pi", "hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "halves", "third", "thirds",
    "quarter", "quarters", "tenths", "percent", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "squared", "cubed",
    "factorial", "infinity", "and", "or", "to", "by", "mod", "times", "plus", "minus", "over",
})
SHORT_UNITS = frozenset({
    "cm", "mm", "km", "kg", "mg", "lb", "lbs", "oz", "ft", "in", "yd", "mi", "ml", "hr", "hrs", "min", "mph", "sq",
})
# fmt: on

_REWRITES = (
    (re.compile(r"[−–‐‑]"), "-"),
    (re.compile(r"(?<!\\)\\[!,;:]|[\u2009\u202f\u00a0]|\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\displaystyle"), ""),
    (re.compile(r"(?<!\\)\\ |~|\\quad"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?|\\degree|°"), ""),
    (re.compile(r"\s*percent\b"), "%"),
)
_WRAPPERS = re.compile(
    r"\$\$(.*)\$\$|\$((?:[^$\\]|\\.)*)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\*\*(.*)\*\*|"
    r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}|\{([^{}]*)\}",
    re.DOTALL,
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_PLAIN = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_SIGNED = rf"[-+]?\s*{_PLAIN}"


def _operand(name: str) -> str:
    """Numerator or denominator: in braces, or one bare digit."""
    return rf"(?:\{{\s*(?P<{name}>{_SIGNED})\s*\}}|(?P<{name}1>\d))"


_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s*(?:[$€£]\s*(?P<inner_sign>-?)\s*)?(?:
        (?:(?P<whole>\d+)\s*)?\\frac\s*{_operand("a")}\s*{_operand("b")}
      | (?:(?P<whole2>\d+)\s+)?(?P<c>{_PLAIN})\s*/\s*(?P<d>{_PLAIN})
      | (?P<plain>{_PLAIN})
        (?:[eE](?P<e>[-+]?\d{{1,3}})|\s*(?:\\times|\\cdot|×|\*)\s*10\s*\^\s*(?:\{{\s*(?P<p>-?\d{{1,3}})\s*\}}|(?P<p1>\d)))?
    )\s*(?P<percent>%?)(?P<unit>.*)""",
    re.VERBOSE | re.DOTALL,
)
_UNIT = re.compile(
    r"\s*\\(?:text|mathrm|textrm|mbox|rm)\s*\{\s*(?P<set>[A-Za-z ./-]+?)\s*\}\s*(?:\^\s*\{?[23]\}?)?|"
    r"(?P<space>\s*)(?P<words>[A-Za-z]+(?:[ -][A-Za-z]+){0,4})(?:\^\{?[23]\}?)?"
)


@dataclass(frozen=True, slots=True)
class Number:
    """An exact value; ``5%`` has value 5 and is also 1/20."""

    value: Fraction
    is_percent: bool = False

    def equals(self, other: Number) -> bool:
        """Equal as written, or with one side's percent sign read as a hundredth.

        Example: ``5%`` equals 5 (the sign as a unit) and 0.05 (the sign as a factor).
        """
        if self.value == other.value:
            return True
        if self.is_percent == other.is_percent:
            return False
        percent, plain = (self.value, other.value) if self.is_percent else (other.value, self.value)
        return percent / 100 == plain


def tidy(text: str) -> str:
    r"""Writes the same answer in one way: no spacing commands, no delimiters or ``\text`` around it, no full stop."""
    text = _unwrap(text)  # before `\\$` loses its backslash
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return _unwrap(text)


def _unwrap(text: str) -> str:
    text = text.strip().rstrip(".,;:").strip()
    while (match := _WRAPPERS.fullmatch(text)) is not None:
        inner = next(group for group in match.groups() if group is not None)
        text = str(inner).strip().rstrip(".,;:").strip()
    return text


def parse_number(text: str) -> Number | None:
    r"""The number that `text` is, with sign, currency, thousands commas, percent sign or trailing unit; else None.

    Integers, decimals, ``a/b``, ``\frac{a}{b}`` in all its spellings, mixed numbers, ``1.5\times 10^{3}``.
    Exponents have three digits at most.

    Example: ``parse_number("-$1,234.50 dollars").value == Fraction(-2469, 2)``
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    match = _NUMBER.fullmatch(tidy(text))
    if match is None or not _is_unit(match["unit"]):
        return None
    value = _value(match)
    if value is None:
        return None
    is_negative = (match["sign"] == "-") != (match["inner_sign"] == "-")
    return Number(-value if is_negative else value, bool(match["percent"]))


def _value(match: re.Match[str]) -> Fraction | None:
    if match["plain"] is not None:
        exponent = int(match["e"] or match["p"] or match["p1"] or 0)
        return _fraction(match["plain"]) * Fraction(10) ** exponent
    over = _fraction(match["a"] or match["a1"] or match["c"])
    under = _fraction(match["b"] or match["b1"] or match["d"])
    if under == 0:
        return None
    return _fraction(match["whole"] or match["whole2"] or "0") + over / under


def _fraction(digits: str) -> Fraction:
    # Through Decimal: int() refuses more than 4,300 digits, Decimal is exact at any length.
    return Fraction(Decimal(re.sub(r"[,\s]", "", digits)))


def _is_unit(text: str) -> bool:
    """Whether what follows a number only names what is counted; ``2 pi`` and ``5 million`` do not."""
    if not text.strip():
        return True
    match = _UNIT.fullmatch(text)
    if match is None:
        return False
    words = re.findall(r"[a-z]+", (match["set"] or match["words"]).lower())
    if any(word in NOT_UNITS for word in words):
        return False
    if match["set"] is not None:
        return words not in (["e"], ["i"], ["a", "m"], ["p", "m"], ["am"], ["pm"])
    return all(len(word) > 2 or word in SHORT_UNITS or word in ("a", "of", "in", "an") for word in words) and (
        len(words[0]) > 1
    )
