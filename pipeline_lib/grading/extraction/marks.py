r"""Marks that announce an answer for certain: ``\boxed{...}``, ``<answer>...</answer>``, lines behind ``####``.

Everything here is linear in the text's length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_BOX_TOKENS = re.compile(
    r"""
      \\{1,4}f?box(?:ed)?\s{0,9}\{   # a box opens
    | \\boxed(?:\\boxed(?!\s{0,9}\{))*(?![A-Za-z])   # a box without braces, \boxed 2; of several in a row the last
    | \\.   # an escaped brace, or the start of another command
    | [{}]
    """,
    re.VERBOSE | re.DOTALL,
)
# What a box without braces holds: a number, a command or a letter that the formula ends with. Prose names the command.
_BRACELESS = re.compile(
    r"\s{0,9}(-?\d[\d.,/]{0,50}|\\[A-Za-z]{1,20}[^\s$]{0,100}|[A-Za-z](?=\s*\$))(?!\s{0,3}[a-z]{2})"
)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*:?\s*([^\n]+)")
_TOPICS = (
    "verification|verify|verifying|explanation|check|checking|note|notes|summary|reasoning|solution|analysis|discussion|"
    "remark|conclusion|proof|total|result|results|given|approach|method|calculation|calculations|work|setup|interpretation"
)
_HEADING = re.compile(rf"(?:step|part|case)\b|(?:{_TOPICS})\s*\d*\s*:?$|\d+\s*[.):]\s+[A-Za-z]", re.IGNORECASE)
_TOPIC = re.compile(rf"(?:step|part|case|{_TOPICS})\b", re.IGNORECASE)
_VALUE = re.compile(r"[-+−–±(\[{|\\$€£¥₹√∞π.\d½⅓⅔¼¾<]|[A-Za-z](?:_\w+)?\s*=|(?:USD|EUR|GBP|INR|Rs)\b|[A-J](?:[).:]|$)")

Span = tuple[int, int]


class Mark(NamedTuple):
    """Where an answer stands.

    Args:
        span: in the text.
        kind: "box", "tag" or "line".
    """

    span: Span
    kind: str


def boxes(text: str) -> list[Mark]:
    """The content of each closed box; one pass with a stack, since boxes nest and break off."""
    if "box" not in text:
        return []
    marks: list[Mark] = []
    stack: list[int | None] = []  # where an open box's content starts; None for any other brace
    for token in _BOX_TOKENS.finditer(text):
        if token[0] == "{":
            stack.append(None)
        elif token[0] == "}":
            start = stack.pop() if stack else None
            if start is not None:
                marks.append(Mark((start, token.start()), "box"))
        elif token[0].endswith("{") and len(token[0]) > 2:
            stack.append(token.end())
        elif token[0].startswith(r"\boxed"):
            bare = _BRACELESS.match(text, token.end())
            if bare:
                end = bare.start(1) + len(bare[1].rstrip(".,;:!?"))
                marks.append(Mark((bare.start(1), end), "box"))
    return marks


def tags(text: str) -> list[Mark]:
    """The content of each closed ``<answer>``."""
    if "<" not in text:
        return []
    marks: list[Mark] = []
    start: int | None = None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            marks.append(Mark((start, tag.start()), "tag"))
            start = None
    return marks


def hash_lines(text: str) -> tuple[list[Mark], list[Mark]]:
    """The lines behind ``####`` that state a value, and those that may be a heading as well; mere headings are neither.

    A line in words states a value where nothing follows it.
    """
    certain: list[Mark] = []
    doubtful: list[Mark] = []
    if "####" not in text:
        return certain, doubtful
    end_of_text = len(text.rstrip())
    for match in _HASHES.finditer(text):
        line = match[1].strip().strip("*_` \t")
        mark = Mark(match.span(1), "line")
        if _TOPIC.match(line) and _HEADING.match(line):
            continue
        if _HEADING.match(line):
            doubtful.append(mark)
        elif _VALUE.match(line) or match.end() >= end_of_text:
            certain.append(mark)
        elif not _TOPIC.match(line):
            doubtful.append(mark)
    return certain, doubtful
