r"""What follows a number: a unit of measure, a noun that is counted, or something that changes the value.

Units are compared only where both sides name one that is known. ``5 cm`` is not ``5 m``, but ``5``,
``5 apples`` and ``5 cm`` may all mean the same.
"""

from __future__ import annotations

import re

NOT_UNITS = frozenset(
    re.findall(
        r"\w+",
        "pi hundred thousand million billion trillion dozen half halves third thirds quarter quarters tenths percent "
        "sqrt sin cos tan log ln exp squared cubed factorial infinity and or to by mod times plus minus over",
    )
)
"""Words after a number that change its value, or begin another one."""
_MEASURES = (
    "mm millimeter millimetre, cm centimeter centimetre, m meter metre, km kilometer kilometre, in inch inches, "
    "ft foot feet, yd yard, mi mile, mg milligram, g gram, kg kilogram kilo, lb pound, oz ounce, ton tonne, "
    "ml milliliter millilitre, l liter litre, gal gallon, qt quart, pt pint, cup, s sec second, min minute, h hr hour, "
    "day, week, month, yr year, $ dollar, cent, € euro, rad radian"
)
_CANONICAL = {name: names.split()[0] for names in _MEASURES.split(", ") for name in names.split()}
_POWERS = {"square": "2", "sq": "2", "cubic": "3"}
_TYPESET = r"""
    \s*\\(?:text|mathrm|textrm|mbox|rm)\s*
    \{\s*(?P<typeset>[A-Za-z ./-]+?)\s*\}\s*
    (?:\^\s*\{?(?P<typeset_power>[23])\}?)?   # squared or cubed
"""
_WORDS = r"""
    \s*
    (?P<words>
        [AaPp]\.?\s?[Mm]\b\.?   # a half of the day
      | [A-Za-z]+(?:(?:[ -]|\s?/\s?)[A-Za-z]+){0,4}   # one word to five, "square miles", "miles / hour"
    )
    (?:\^\{?(?P<power>[23])\}?)?
"""
_HALF_DAY = re.compile(r"([ap])\.?\s?m\.?")
_UNIT = re.compile(f"{_TYPESET}|{_WORDS}", re.VERBOSE)
_TAIL = re.compile(rf"(?P<rest>.*\S)(?P<unit>{_TYPESET})", re.VERBOSE | re.DOTALL)


def unit_of(text: str) -> str | None:
    r"""The unit of measure that `text` names, "" where it only names what is counted, None where it is no unit.

    Args:
        text: all that follows a number.

    Example: ``unit_of(" square inches") == "in2"``, ``unit_of(" apples") == ""``, ``unit_of(" million") is None``.
    """
    if not text.strip():
        return ""
    match = _UNIT.fullmatch(text)
    if match is None:
        return None
    named = (match["typeset"] or match["words"]).lower()
    if half := _HALF_DAY.fullmatch(named):
        return f"{half[1]}m"
    words = re.findall(r"[a-z]+", named)
    if any(word in NOT_UNITS for word in words):
        return None
    unit = _measure(words, match["typeset_power"] or match["power"] or "")
    if match["typeset"] is not None:
        return None if words in (["e"], ["i"]) else unit
    is_one_letter = len(words) == 1 and len(words[0]) == 1
    if is_one_letter and not (unit and text[0].isspace()):
        return None  # a variable
    reads_like_a_noun = all(len(word) > 2 or word in ("a", "of", "in", "an") for word in words)
    return unit if unit or reads_like_a_noun else None


def split_unit(text: str) -> tuple[str, str]:
    r"""A formula without the unit that is set in text type behind it, and that unit.

    Example: ``split_unit(r"5\sqrt{2}\text{ cm}") == (r"5\sqrt{2}", "cm")``
    """
    match = _TAIL.fullmatch(text)
    unit = unit_of(match["unit"]) if match else None
    return (text, "") if match is None or unit is None else (match["rest"].rstrip("\\ "), unit)


def units_agree(left: str, right: str, *, ignore_units: bool) -> bool:
    """Whether two units of `unit_of` can belong to equal answers; with `ignore_units`, "" agrees with every unit."""
    return left == right or (ignore_units and not (left and right))


def _measure(words: list[str], power: str) -> str:
    """The unit in its shortest name, ``km/h`` or ``in2``; "" when a word is no unit of measure."""
    if words == ["mph"]:
        return "mi/h"
    parts: list[str] = []
    for word in words:
        if word in _POWERS:
            power = _POWERS[word]
        elif word != "per":
            name = _CANONICAL.get(word) or _CANONICAL.get(word.removesuffix("s"))
            if name is None:
                return ""
            parts.append(name + power)
            power = ""
    return "/".join(parts)
