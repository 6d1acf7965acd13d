r"""Numbers in words, as formulas: ``negative 5``, ``three fifths``, ``the square root of 16``, ``5 million``.

One idea: the whole phrase is read, word by word, or nothing is; a number in words that are not understood is never
taken for the number alone.
"""

from __future__ import annotations

import re

from pipeline_lib.grading.units import NUMBER_WORDS, unit_of

_CARDINALS = {word: value if value < 20 else 20 + 10 * (value - 20) for value, word in enumerate(NUMBER_WORDS)}
_MULTIPLES = {
    "hundred": 100,
    "thousand": 1000,
    "lakh": 100_000,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "score": 20,
}
_FRACTIONS = (
    {"half": 2, "halve": 2, "quarter": 4}
    | dict(
        zip(
            re.findall(r"\w+", "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"),
            range(3, 13),
            strict=True,
        )
    )
    | {"fifteenth": 15, "sixteenth": 16, "twentieth": 20, "hundredth": 100, "thousandth": 1000}
)
_FACTORS = {"twice": "2", "double": "2", "thrice": "3", "triple": "3"}
_FILLERS = frozenset(("the", "a", "an", "exactly", "only", "just", "about", "approximately", "around", "of"))
_FIGURES = re.compile(r"-?\d[\d,]{0,40}(?:\.\d{1,40})?|-?\d{1,20}/\d{1,20}")
_WORDS = re.compile(r"[A-Za-z]+|-?\d[\d,./]*|%")
_MAX_WORDS = 14


def in_figures(text: str) -> str | None:
    r"""The number that a phrase names, in figures, with the unit behind it dropped; None where it names none.

    Example: ``in_figures("negative five") == "-5"``, ``in_figures("the square root of 16") == r"\sqrt{16}"``
    """
    if len(text) > 120 or not re.search("[A-Za-z]{3}", text):
        return None
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    if re.search(r"[^A-Za-z0-9,.\s/%'-]", plain):
        return None
    words = _WORDS.findall(re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", plain).lower())
    if not words or len(words) > _MAX_WORDS or all(_FIGURES.fullmatch(word) for word in words):
        return None
    spoken, rest = _read(words, 0)
    if spoken is None or (rest and unit_of(" " + " ".join(rest)) is None):
        return None
    return spoken


def _read(words: list[str], depth: int) -> tuple[str | None, list[str]]:
    """A formula, and the words behind it."""
    if not words or depth > 4:
        return None, words
    first, rest = words[0], words[1:]
    if first in ("negative", "minus"):
        inside, rest = _read(rest, depth + 1)
        return (None if inside is None or inside.startswith("-") else f"-{inside}"), rest
    if first in _FACTORS:
        inside, rest = _read(rest, depth + 1)
        return (None if inside is None else rf"{_FACTORS[first]}\cdot({inside})"), rest
    if first in ("square", "cube") and rest[:2] == ["root", "of"]:
        inside, rest = _read(rest[2:], depth + 1)
        root = r"\sqrt" if first == "square" else r"\sqrt[3]"
        return (None if inside is None else rf"{root}{{{inside}}}"), rest
    if first in ("square", "cube") and rest[:1] == ["of"]:
        inside, rest = _read(rest[1:], depth + 1)
        return (None if inside is None else f"({inside})^{2 if first == 'square' else 3}"), rest
    if first == "half" and rest:
        inside, rest = _read(rest[1:] if rest[0] == "of" else rest, depth + 1)
        return (r"\frac{1}{2}" if inside is None else rf"\frac{{{inside}}}{{2}}"), rest
    if first in _FILLERS and rest:
        if first in ("a", "an") and _singular(rest[0]) in _FRACTIONS:
            return _read(["one", *rest], depth + 1)
        if first in ("a", "an") and rest[0] in _MULTIPLES:
            return _read(["one", *rest], depth + 1)
        return _read(rest, depth + 1)
    return _amount(words)


def _amount(words: list[str]) -> tuple[str | None, list[str]]:
    """``five``, ``5 million``, ``three fifths``, ``two and a half``, ``5 squared``."""
    value, rest = _cardinal(words)
    if value is None:
        return None, words
    if rest and _singular(rest[0]) in _FRACTIONS and _is_fraction_word(rest[0], value):
        return rf"\frac{{{value}}}{{{_FRACTIONS[_singular(rest[0])]}}}", rest[1:]
    if rest[:3] == ["and", "a", "half"]:
        return rf"({value}+\frac{{1}}{{2}})", rest[3:]
    if rest[:1] == ["over"]:
        divisor, after = _cardinal(rest[1:])
        return (None, words) if divisor is None else (rf"\frac{{{value}}}{{{divisor}}}", after)
    if rest[:1] in (["percent"], ["%"]):
        return f"{value}%", rest[1:]
    if rest[:1] in (["squared"], ["cubed"]):
        return f"({value})^{2 if rest[0] == 'squared' else 3}", rest[1:]
    if rest[:1] == ["factorial"]:
        return f"({value})!", rest[1:]
    return value, rest


def _is_fraction_word(word: str, value: str) -> bool:
    return word.endswith("s") or value == "1" or word == "half"


def _singular(word: str) -> str:
    return word.removesuffix("s")


def _cardinal(words: list[str]) -> tuple[str | None, list[str]]:
    """A number in figures or words, with ``hundred``, ``million`` and so on; and the words behind it."""
    if not words:
        return None, words
    place, factors = 1, []
    if _FIGURES.fullmatch(words[0].rstrip(".,")):
        value = words[0].rstrip(".,")
    elif words[0] in _CARDINALS:
        total, place = _in_words(words)
        value = str(total)
    else:
        return None, words
    while place < len(words) and _singular(words[place]) in _MULTIPLES:
        factors.append(_MULTIPLES[_singular(words[place])])
        place += 1
    for factor in factors:
        value = rf"{value}\cdot {factor}"
    return value, words[place:]


def _in_words(words: list[str]) -> tuple[int, int]:
    """Value and length of ``two hundred and fifty three``: in English order."""
    total = current = place = 0
    smallest = 100
    while place < len(words):
        word = words[place]
        if word in _CARDINALS and _CARDINALS[word] < smallest:
            current += _CARDINALS[word]
            smallest = 10 if _CARDINALS[word] >= 20 else 0
        elif word in ("hundred", "thousand", "million", "billion") and current:
            current *= _MULTIPLES[word]
            total, current = (total, current) if word == "hundred" else (total + current, 0)
            smallest = 100
        elif (
            word == "and"
            and place
            and words[place - 1] in _MULTIPLES
            and words[place + 1 : place + 2]
            and (words[place + 1] in _CARDINALS)
        ):
            pass
        else:
            break
        place += 1
    return total + current, place
