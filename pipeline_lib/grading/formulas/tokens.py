r"""A formula's tokens: what stands in it, blanks and idle braces left out.

One idea: two answers are spelt alike when their tokens are, so ``1 1/2`` is never ``11/2`` and ``R`` never ``r``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan ln log exp sqrt cbrt abs floor ceil max min gcd "
        "lcm asin acos atan lg det",
    )
)
CONSTANT_WORDS = {"pi": r"\pi", "infinity": r"\infty", "inf": r"\infty", "oo": r"\infty", "theta": r"\theta"}
TAKES_ONE_DIGIT = frozenset((r"\frac", r"\binom", r"\sqrt"))  # \frac12 is 1/2, \sqrt13 is 3: as TeX reads them
_TOKEN = re.compile(
    r"""
      (?P<grouped>\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?)   # 1,234.5
    | (?P<number>\d+(?:\.\d*)?|\.\d+)
    | (?P<environment>\\(?:begin|end)\s*\{[a-zA-Z]+\*?\})
    | \\(?:text|mathrm|operatorname)\s*\{(?P<text>[^{}]*)\}
    | (?P<command>\\(?:[A-Za-z]+|.))
    | (?P<word>[A-Za-z]+)
    | (?P<sign>[^\s])
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)


class Token(NamedTuple):
    """Kind: number, command, letter, word (a function's name), text (set in text type), sign."""

    kind: str
    text: str


def tokens_of(text: str) -> list[Token]:
    r"""The tokens of a formula in normal spelling (see `spelling`); in linear time.

    Commas between thousands belong to a number only outside all brackets: ``(100,200)`` is a pair.

    Example: ``[t.text for t in tokens_of(r"2x^{2}")] == ["2", "x", "^", "2"]``
    """
    found: list[Token] = []
    depth = 0
    for match in _TOKEN.finditer(text):
        kind, value = str(match.lastgroup), match[str(match.lastgroup)]
        if kind == "grouped" and depth == 0:
            found.append(Token("number", value.replace(",", "")))
        elif kind == "grouped":
            for place, part in enumerate(value.split(",")):
                found.extend([Token("sign", ",")] * (place > 0) + [Token("number", part)])
        elif kind == "word":
            found.extend(_split_word(value))
        elif kind == "text":
            found.append(_typeset(value.strip()))
        elif kind == "environment":
            found.append(Token("command", value.replace(" ", "")))
        elif kind == "number" and len(value) > 1 and found and found[-1].text in TAKES_ONE_DIGIT:
            found.extend(Token("number", digit) for digit in value)
        else:
            depth += (value in ("(", "[", r"\{")) - (value in (")", "]", r"\}"))
            found.append(Token(kind, value))
    return _without_idle_braces(found)


def _split_word(word: str) -> list[Token]:
    if word.lower() in FUNCTION_WORDS:
        return [Token("word", word.lower())]
    if word.lower() in CONSTANT_WORDS:
        return [Token("command", CONSTANT_WORDS[word.lower()])]
    return [Token("letter", letter) for letter in word]


def _typeset(text: str) -> Token:
    if len(text) == 1 and text.isalpha():
        return Token("letter", text)
    if text.lower() in FUNCTION_WORDS:
        return Token("word", text.lower())
    return Token("text", " ".join(text.split()))


def _without_idle_braces(tokens: list[Token]) -> list[Token]:
    """Without the braces around a single token."""
    kept: list[Token] = []
    for token in tokens:
        kept.append(token)
        is_closing = token.text == "}" and token.kind == "sign"
        if is_closing and len(kept) > 2 and kept[-3] == ("sign", "{") and kept[-2].text not in "{}^_":
            kept[-3:] = [kept[-2]]
    return kept
