r"""Answers in words: phrases, choices and the names that stand before an equals sign.

One idea: a phrase is compared by its words, numbers, signs and operators; only layout, punctuation and the case of
whole words go. It is never given to algebra, which would find "east" equal to "seat".
"""

from __future__ import annotations

import re

from pipeline_lib.grading.formulas.tokens import FUNCTION_WORDS
from pipeline_lib.grading.units import is_product_of_letters

_COMMAND = re.compile(r"\\[A-Za-z]+")
_TYPESET = re.compile(r"\\text\s*\{([^{}]*)\}")
_TEXT_WORD = re.compile(r"[A-Za-z]{2,}")
_BARE_WORD = re.compile(r"[A-Za-z]{3,}")
_HALF_DAY = re.compile(r"\b([AaPp])\.\s?[Mm]\b\.?")
_NO_WORDS = FUNCTION_WORDS | {"and", "or", "begin", "end", "pmatrix", "bmatrix", "vmatrix", "matrix", "array", "cases"}
_PHRASE_TOKEN = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+|\\[A-Za-z]+|[^\W\d_]+|[-+*/^=<>!%|()\[\]]", re.ASCII)
_UNICODE_WORD = re.compile(r"[^\W\d_]+")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z*]+\}(?:\{[clr|]+\})?")
_LABEL = r"(?:(?:option|choice|answer)\s+)?"
_CHOICE = re.compile(
    rf"""
    (?:{_LABEL})(?:
        \(\s*(?P<inside>[A-J])\s*\)\s*[.:,]?
      | (?P<marked>[A-J])\s*(?:[.)]|:(?=\s))
      | (?P<bare>[A-J])(?=$)
    )
    \s*(?P<rest>.*)
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def is_phrase(text: str) -> bool:
    """Whether an answer in normal spelling is prose: words in text type, or that no product of letters would be."""
    for typeset in _TYPESET.findall(text):
        if any(word.lower() not in _NO_WORDS for word in _TEXT_WORD.findall(typeset)):
            return True
    bare = _COMMAND.sub(" ", _ENVIRONMENT.sub(" ", _TYPESET.sub(" ", text)))
    words = [word for word in _BARE_WORD.findall(bare) if word.lower() not in _NO_WORDS]
    if text.lower() == "no":
        return True
    if not words:
        return not text.isascii() and any(len(word) > 1 for word in _UNICODE_WORD.findall(bare) if not word.isascii())
    long = [word for word in words if len(word) > 3 and not is_product_of_letters(word)]
    return bool(long) or (text.isalpha() and not is_product_of_letters(text))


def same_phrase(left: str, right: str) -> bool:
    """Whether two phrases have the same words, numbers and signs, in the same order."""
    ours = phrase_tokens(left)
    return bool(ours) and ours == phrase_tokens(right)


def phrase_tokens(text: str) -> list[str]:
    """Words in lower case, single letters as they are, numbers, commands, operators."""
    plain = _HALF_DAY.sub(r"\1m", _TYPESET.sub(r" \1 ", text))
    found = _UNICODE_WORD.findall(plain) if not plain.isascii() else []
    if any(not word.isascii() for word in found):
        return [word.lower() for word in re.findall(r"\w+|[-+*/^=<>!%]", plain)]
    tokens = [token.replace(",", "") for token in _PHRASE_TOKEN.findall(_between_words(plain))]
    return [token.lower() if len(token) > 1 and token.isalpha() else token for token in tokens]


def _between_words(text: str) -> str:
    """Without the hyphens inside compound words and the brackets around words alone."""
    text = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", text)
    return re.sub(r"\(([A-Za-z ]*)\)", r" \1 ", text)


def read_choice(text: str) -> tuple[str, str] | None:
    r"""The letter of ``(C)``, ``C. 12`` or ``\text{(E) none}``, and the text behind it; else None."""
    plain = " ".join(_TYPESET.sub(r" \1 ", text).replace("$", " ").split())
    match = _CHOICE.fullmatch(plain)
    if match is None:
        return None
    letter = match["inside"] or match["marked"] or match["bare"]
    rest = match["rest"].strip()
    if letter.islower() and (rest or not match["inside"]):
        return None
    if rest and re.match(r"(?:and|or)\b|[,;&+*/^=<>]|\(?[A-J]\)?(?:$|[.:,;) ])", rest):
        return None
    return letter.upper(), rest


_NAME = r"""
    (?:
        [A-Za-z](?:_(?:\w|\{[^{}]*\}))?'{0,3}(?:\^\{-1\})?(?:\s*\([^()=]{1,40}\))?   # x_1, f'(x), f^{-1}(x), P(X > 3)
      | \\(?:alpha|beta|gamma|delta|theta|phi|varphi|lambda|mu|rho|sigma|omega|Delta|ell)\s*(?:_(?:\w|\{[^{}]*\}))?
      | (?:m\s*)?\\(?:angle|triangle|overline|vec|overrightarrow|widehat|bar|hat)\s*(?:\{[^{}]*\}|[A-Z]{1,4}|[A-Za-z])
      | [A-Z]{2,4}   # a segment
      | \|\s*[A-Z]{2}\s*\||\[\s*[A-Z]{3,5}\s*\]   # its length; an area
      | \\frac\{d\s*\^?2?\s*[A-Za-z]?\}\{d\s*[A-Za-z](?:\^\{?2\}?)?\}\s*[A-Za-z]?
      | \\(?:sin|cos|tan|cot|log|ln)\s*(?:\(?\s*(?:[A-Za-z]|\\(?:theta|alpha|beta|phi|angle\s*[A-Z]{1,3}))\s*\)?)
      | \\text\s*\{[^{}]*\}(?:_(?:\w|\{[^{}]*\}))?(?:\s*\([^()=]{1,40}\))?
    )
"""
_WHOLE_NAME = re.compile(_NAME, re.VERBOSE)
_BARE_NAME = re.compile(r"[A-Za-z][A-Za-z' ]{2,60}")
_LIMIT = re.compile(r"\\(?:lim|sum|int|prod|iint)(?![A-Za-z])")


def is_name(text: str) -> bool:
    """Whether what stands before an equals sign only names the value behind it."""
    text = text.strip()
    is_in_words = bool(_BARE_NAME.fullmatch(text)) and is_phrase(text)  # the total area
    return is_in_words or bool(_WHOLE_NAME.fullmatch(text) or _LIMIT.match(text))


MAX_CHARS = 4000  # of an answer with several sides
_SIDES = re.compile(r"\\[A-Za-z]+|\\.|[=()\[\]{}]", re.DOTALL)


def sides_of(text: str) -> list[tuple[str, str]]:
    r"""The sides of ``a = b \approx c`` with the sign before each; one alone where there is none outside brackets.

    Example: ``sides_of("x = 5") == [("", "x"), ("=", "5")]``
    """
    if len(text) > MAX_CHARS or ("=" not in text and r"\approx" not in text):
        return [("", text)]
    sides, start, sign, depth = [], 0, "", 0
    for match in _SIDES.finditer(text):
        token = match[0]
        depth += (token in ("(", "[", "{", r"\{")) - (token in (")", "]", "}", r"\}"))
        if depth == 0 and token in ("=", r"\approx"):
            sides.append((sign, text[start : match.start()].strip()))
            start, sign = match.end(), "~" if token == r"\approx" else "="
    return [*sides, (sign, text[start:].strip())]
