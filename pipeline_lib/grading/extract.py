r"""The final answer in a policy's raw text.

One idea: an answer has to be announced. ``#### n`` and ``\boxed{...}`` announce it for certain, and
the last of them wins whatever prose follows; then comes "the answer is ...". A number that merely
stands last in the text is not an answer unless that is asked for: guessing it would reward rollouts
that broke off.

Everything here is linear in the text's length.
"""

from __future__ import annotations

import re

from pipeline_lib.grading.exact import parse_number
from pipeline_lib.grading.units import NOT_UNITS, unit_of

_BOX_TOKENS = re.compile(
    r"""
      \\f?box(?:ed)?\b\s*\{   # a box opens
    | \\boxed(?![A-Za-z])   # a box without braces, \boxed 2
    | \\.   # an escaped brace, or the start of another command
    | [{}]
    """,
    re.VERBOSE | re.DOTALL,
)
_BRACELESS = re.compile(r"\s{0,9}([^\s$]{1,200})")  # what a box without braces holds
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*:?\s*([^\n]+)")
_HEADING = re.compile(r"(?:step|part|case)\b|\d+\s*[.):]\s+[A-Za-z]", re.IGNORECASE)
_ANNOUNCED = re.compile(
    r"""
    \banswer(?:\s+is|\s+equals|\s*:|\s*=)
    \s*:?\s*
    (?=([^\n]{1,1000}))   # the rest of the line, not consumed: "answer" may stand there again
    """,
    re.VERBOSE | re.IGNORECASE,
)
_DELIMITED = re.compile(
    r"""
      \$\$(.+?)\$\$
    | \$((?:[^$\\]|\\.)+)\$
    | \\\((.+?)\\\)
    | \\\[(.+?)\\\]
    """,
    re.VERBOSE | re.DOTALL,
)
_SIGN_AND_CURRENCY = r"[-+−]?\s?(?:\\?\$|€|£)?-?"
_DIGITS = r"(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)"
_NUMBER = rf"{_SIGN_AND_CURRENCY}{_DIGITS}(?:\s?/\s?\d+)?(?:\s?\\?%)?"
_LEADING_NUMBER = re.compile(
    rf"""
    (?P<number>{_NUMBER})
    (?=[\s.,;:!?)*"']|$)   # it ends here
    (?!\s*[ap]\.?m\b)   # and is no time of day
    [\s.,;:!?()*"']*
    (?P<next_word>[A-Za-z]+|$)
    """,
    re.VERBOSE,
)
_ANY_NUMBER = re.compile(rf"(?<![\w.,]){_NUMBER}(?![\w%])")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_JOINT = re.compile(r"\s*(?:,|,?\s*\band\b|,?\s*\bor\b)\s*")  # between two formulas of one answer
_WORDS_AFTER = re.compile(r" (?:[ap]\.m\b|[A-Za-z]+(?:[ /][A-Za-z]+){0,3})")  # " p.m", or one word to four
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{4,}")  # of prose: no command, no letters in a formula
_NO_UNIT_AFTER = NOT_UNITS | {"and", "or", "to", "by", "mod", "times", "plus", "minus", "over", "am", "pm"}


def extract_answer(text: str, *, last_number: bool = False) -> str | None:
    r"""The final answer that `text` announces, without the prose around it; None when there is none.

    In this order: the last ``#### ...`` or non-empty ``\boxed{...}`` (``\fbox``, nested braces and
    ``\boxed 2`` included), then a ``####`` line that looks like a heading, then the last "answer
    is ...", then the whole text when it is nothing but a number or one formula.

    Args:
        text: the policy's raw text, of any length.
        last_number: whether the last number of a text without any of these is its answer.

    Example: ``extract_answer(r"So $x=\boxed{\frac{1}{2}}$, not 3.")`` is ``\frac{1}{2}``.
    """
    lines = [match.span(1) for match in _HASHES.finditer(text)]
    certain = [span for span in lines if not _HEADING.match(text, *span)]
    answer = _last(text, _boxes(text), certain) or _last(text, [], lines)
    if answer is None:
        answer = _last(text, [], [match.span(1) for match in _ANNOUNCED.finditer(text)])
    if answer is not None:
        return answer
    answer = _bare(text)
    if answer is None and last_number and (numbers := _ANY_NUMBER.findall(text)):
        answer = str(numbers[-1]).strip()
    return answer


Span = tuple[int, int]


def _last(text: str, boxes: list[Span], lines: list[Span]) -> str | None:
    """The last non-empty one among boxes, taken as they are, and lines, cut down to their answer."""
    places = [(span, False) for span in boxes] + [(span, True) for span in lines]
    for (start, end), is_line in sorted(places, reverse=True):
        answer = _trim(text[start:end]) if is_line else text[start:end].strip()
        if answer:
            return answer
    return None


def _boxes(text: str) -> list[Span]:
    """Where the content of each closed box stands; one pass with a stack, since boxes nest and break off."""
    if "box" not in text:
        return []
    spans: list[Span] = []
    stack: list[int | None] = []  # where an open box's content starts; None for any other brace
    for token in _BOX_TOKENS.finditer(text):
        if token[0] == "{":
            stack.append(None)
        elif token[0] == "}":
            start = stack.pop() if stack else None
            if start is not None:
                spans.append((start, token.start()))
        elif token[0].endswith("{") and len(token[0]) > 2:
            stack.append(token.end())
        elif token[0] == r"\boxed":
            bare = _BRACELESS.match(text, token.end())
            if bare:
                spans.append((bare.start(1), bare.start(1) + len(bare[1].rstrip(".,;:!?"))))
    return spans


def _trim(span: str) -> str:
    """Cuts what follows an announcement down to the answer itself."""
    span = _without_loose_end(span.strip().strip("*`_ \t").strip())
    formulas = _leading_formulas(span)
    if formulas:
        return ", ".join(formulas)
    number = _LEADING_NUMBER.match(span)
    if number and number["next_word"].lower() not in _NO_UNIT_AFTER:
        return (number["number"] + _unit_after(span[number.end("number") :])).strip()
    end = _SENTENCE_END.search(span)
    sentence = span[: end.start()] if end else span
    if _WORD.search(sentence):
        inside = _DELIMITED.findall(sentence)
        if len(inside) == 1:
            return str(max(inside[0], key=len)).strip()
        numbers = _ANY_NUMBER.findall(sentence)
        if len(numbers) == 1 and not _NO_UNIT_AFTER & set(sentence.lower().split()):
            return str(numbers[0]).strip()
    return sentence.strip("*`_ \t").rstrip(",;:").strip()


def _leading_formulas(span: str) -> list[str]:
    """The formula in dollars at the start, and those that a comma or an "and" joins to it."""
    formulas: list[str] = []
    match = _DELIMITED.match(span)
    while match:
        formulas.append(next(str(group) for group in match.groups() if group is not None).strip())
        joint = _JOINT.match(span, match.end())
        match = _DELIMITED.match(span, joint.end()) if joint else None
    return formulas


def _unit_after(text: str) -> str:
    """The unit of measure that `text` begins with; "" where it begins with anything else."""
    words = _WORDS_AFTER.match(text)
    while words:
        if unit_of(words[0]) not in ("", "in", None):  # "5 in all" is no length
            return words[0]
        words = _WORDS_AFTER.match(words[0].rpartition(" ")[0])
    return ""


def _without_loose_end(span: str) -> str:
    """Drops what closes nothing at the end of an answer: ``42}$.`` becomes ``42``, ``[1, 2)`` stays."""
    end = span.rstrip(".,;: ")
    while _ends_loosely(end):
        span = end = end[:-1].rstrip()
    return span


def _ends_loosely(text: str) -> bool:
    if text.endswith("$"):
        return not text.endswith("\\$") and text.count("$") % 2 == 1
    if text.endswith("}"):
        return text.count("}") > text.count("{")
    # An interval may open with one kind of bracket and close with the other.
    return text.endswith((")", "]")) and text.count(")") + text.count("]") > text.count("(") + text.count("[")


def _bare(text: str) -> str | None:
    text = text.strip()
    if not text or "\n" in text:
        return None
    delimited = _DELIMITED.fullmatch(text.rstrip("."))
    if delimited:
        return _trim(text)
    is_formula = text.startswith("\\") and not any(part in text for part in (" ", "=", "box"))
    return text if is_formula or parse_number(text) is not None else None
