r"""What follows a number: a unit of measure, a noun that is counted, or something that changes the value.

Units are compared only where both sides name one that is known. ``5 cm`` is not ``5 m``, but ``5``,
``5 apples`` and ``5 cm`` may all mean the same.

A letter is no unit where it may be a variable: ``2h`` and ``v_0 t`` are products. It is one in text type, and behind
a number in prose (``#### 12 m``); ``cm``, ``km`` and ``kg`` are always, other short names behind a space.
"""

from __future__ import annotations

import re
from itertools import pairwise

NUMBER_WORDS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety",
)
_NUMBER_WORD_SET = frozenset(NUMBER_WORDS)
ORDINALS = re.findall(
    r"\w+",
    "half third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth twentieth thirtieth fortieth fiftieth hundredth thousandth millionth quarter",
)
NOT_UNITS = frozenset(
    re.findall(
        r"\w+",
        "pi hundred hundreds thousand thousands million millions billion billions trillion trillions dozen dozens lakh "
        "lakhs crore crores score half halves percent sqrt sin cos tan log ln exp squared cubed factorial infinity and "
        "or to by mod modulo times plus minus over below above negative root twice double triple thrice less fewer",
    )
) | {word + end for word in ORDINALS for end in ("", "s")}
"""Words after a number that change its value, or begin another one."""
_MEASURES = (
    "mm millimeter millimetre, cm centimeter centimetre, m meter metre, km kilometer kilometre, in inch inches, "
    "ft foot feet, yd yard, mi mile, mg milligram, g gram, kg kilogram kilo, lb pound, oz ounce, ton tonne, "
    "ml milliliter millilitre, l liter litre, gal gallon, qt quart, pt pint, cup, s sec second, min minute, h hr hour, "
    "day, week, month, yr year, $ dollar usd, cent, € euro eur, £ gbp, ¥ yen jpy, ₹ rupee inr rs, rad radian, "
    "deg degree"
)
_CANONICAL = {name: names.split()[0] for names in _MEASURES.split(", ") for name in names.split()}
_POWERS = {"square": "2", "sq": "2", "cubic": "3"}
_GLUED = frozenset(("cm", "km", "kg", "mm", "mph"))
_NAMED_LETTERS = frozenset("mgshl")
_SHORT_WORDS = frozenset(("a", "of", "in", "an"))
_TYPESET = r"""
    \s*\\(?:text|mathrm|textrm|mbox|rm)\s*
    \{\s*\(?(?P<typeset>[A-Za-z][A-Za-z ./^0-9'-]*?)\)?\s*\}\s*
    (?:\^\s*\{?(?P<typeset_power>[23])\}?)?   # squared or cubed
"""
_WORDS = r"""
    \s*
    (?P<words>
        [AaPp]\.?\s?[Mm]\b\.?   # a half of the day
      | [A-Za-z]+(?:(?:[ -]|\s?/\s?)[A-Za-z]+){0,5}   # one word to six, "square miles", "miles / hour"
    )
    \.?
    (?:\^\{?(?P<power>[23])\}?)?
"""
_HALF_DAY = re.compile(r"([ap])\.?\s?m\.?")
_DEGREES = re.compile(r"\s*\\degree\s*(?P<scale>[CF]?)\s*")
_UNIT = re.compile(f"{_TYPESET}|{_WORDS}", re.VERBOSE)
_TAIL = re.compile(rf"(?P<rest>.*\S)(?P<unit>{_TYPESET})", re.VERBOSE | re.DOTALL)
_BARE_TAIL = re.compile(r"((?:sq(?:uare)?|cubic) )?([A-Za-z]{2,12})(?:\^\{?([23])\}?)?")
_EACH = re.compile(r"^\s*/\s*(?=[A-Za-z]{3})")  # $18/day
_OTHER_NUMBER = re.compile(r"(?:^|[^a-z^])\d|[014-9]")  # "hours 30 minutes"
_PARTS = re.compile(r"([a-z]+|[/])(?:\^?([23]))?")


def unit_of(text: str, *, is_prose: bool = False) -> str | None:
    r"""The unit of measure that `text` names, "" where it only names what is counted, None where it is no unit.

    Args:
        text: all that follows a number.
        is_prose: whether a letter behind a space is a unit, not a variable.

    Example: ``unit_of(" square inches") == "in2"``, ``unit_of(" apples") == ""``, ``unit_of(" million") is None``.
    """
    if not text.strip():
        return ""
    text = _EACH.sub(" per ", text)
    if degrees := _DEGREES.fullmatch(text):
        return "deg" + degrees["scale"]
    match = _UNIT.fullmatch(text)
    if match is None:
        return None
    named = (match["typeset"] or match["words"]).lower()
    if half := _HALF_DAY.fullmatch(named):
        return f"{half[1]}m"
    words = re.findall(r"[a-z]+", named)
    if _OTHER_NUMBER.search(named) or any(word in NOT_UNITS for word in words):
        return None
    unit = _measure(named, match["typeset_power"] or match["power"] or "")
    if match["typeset"] is not None:
        return unit if unit or len(named) > 1 else None
    if not text[0].isspace():
        return unit if named in _GLUED or (unit and len(named) > 2) else None
    if len(named) == 1:
        return unit if unit and is_prose and named in _NAMED_LETTERS else None  # else a variable
    return unit if unit or _reads_like_a_noun(named, words) else None


def _reads_like_a_noun(named: str, words: list[str]) -> bool:
    """Whether words may be what is counted, and neither letters of a product nor another number."""
    if any(len(word) <= 2 and word not in _SHORT_WORDS for word in words):
        return False
    if any(word in _NUMBER_WORD_SET and f"{word}-" not in named for word in words):
        return False
    return not any(is_product_of_letters(word) for word in words if word not in _SHORT_WORDS)


def is_product_of_letters(word: str) -> bool:
    """Whether a short word is none: in ``xyz`` and ``abc`` the letters follow each other, ``mgh`` has no vowel."""
    if len(word) > 4 or len(word) < 2:
        return False
    codes = sorted(map(ord, word.lower()))
    follow = all(after - before == 1 for before, after in pairwise(codes))
    return follow or not set(word.lower()) & set("aeiouy")


def split_unit(text: str) -> tuple[str, str]:
    r"""A formula without the unit behind it, and that unit.

    Example: ``split_unit(r"5\sqrt{2}\text{ cm}") == (r"5\sqrt{2}", "cm")``
    """
    match = _TAIL.fullmatch(text) if text.endswith(("}", "2", "3")) and "\\text" in text else None
    unit = unit_of(match["unit"]) if match else None
    if match is not None and unit is not None:
        return match["rest"].rstrip("\\ "), unit
    return _split_bare_unit(text)


def _split_bare_unit(text: str) -> tuple[str, str]:
    r"""``25\pi cm^2``: a known measure behind a space."""
    for count in (2, 1):
        pieces = text.rsplit(" ", count)
        if len(pieces) != count + 1 or not pieces[0] or pieces[0][-1] in "+-*/^_=<>,({[":
            continue
        match = _BARE_TAIL.fullmatch(" ".join(pieces[1:]))
        if match and (unit := _measure((match[1] or "").strip() + " " + match[2].lower(), match[3] or "")):
            return pieces[0].rstrip("\\ "), unit
    return text, ""


def units_agree(left: str, right: str, *, ignore_units: bool) -> bool:
    """Whether two units of `unit_of` can belong to equal answers; with `ignore_units`, "" agrees with every unit."""
    return left == right or (ignore_units and not (left and right))


def measure_of(word: str) -> str:
    """The short name of a single measure, "" for any other word.

    Example: ``measure_of("hours") == "h"``
    """
    return _CANONICAL.get(word) or _CANONICAL.get(word.removesuffix("s")) or ""


def _measure(named: str, power: str) -> str:
    """The unit in its shortest name, ``km/h`` or ``in2``; "" when a word is no unit of measure."""
    found = _PARTS.findall(named)
    words = [word for word, _ in found]
    if words == ["mph"]:
        return "mi/h"
    parts: list[str] = []
    leading = ""  # of "square feet"
    for word, own_power in found:
        if word in _POWERS:
            leading = _POWERS[word]
        elif word not in ("per", "/"):
            name = measure_of(word)
            if not name:
                return ""
            parts.append(name + (own_power or leading))
            leading = ""
    if parts and power:
        parts[-1] += power
    return ("1/" if words[:1] == ["per"] else "") + "/".join(parts)
