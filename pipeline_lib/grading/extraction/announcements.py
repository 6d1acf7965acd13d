r"""Answers that are announced in words: "the answer is 7", "**Final Answer**" and its value on the next line.

Everything here is linear in the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_CHARS = 1000
_IS = (
    r"is|are|was|equals|becomes|(?:would|should|will|must|has\s+to|can\s+only)\s+be|comes?\s+(?:out\s+)?to(?:\s+be)?"
    r"|turns\s+out\s+to\s+be"
)
_ANNOUNCED = re.compile(
    rf"""
    (?<![A-Za-z])(?:answers?|(?:correct|right)\s(?:option|choice))(?![A-Za-z])
    (?:\s{{1,3}}(?:to|of|for|in)\s[^.\n:=]{{1,60}}?)?   # to the question
    [*_ \t]{{0,5}} (?:\([^()\n]{{0,40}}\)[*_ \t]{{0,5}})?
    (?: \s{{0,3}}\b(?:{_IS})\b | : | = | ≈ )
    [*_ \t:]{{0,9}}
    """,
    re.VERBOSE | re.IGNORECASE,
)
_HEADING = re.compile(
    r"^[ \t#>*_✅-]{0,12}(?:the\s)?(?:final\s|correct\s)?answers?[ \t*_:.-]{0,8}$", re.IGNORECASE | re.MULTILINE
)
_HOPE = re.compile(r"\b(?:hope|check|verify|whether|confirm)\b[^.\n]{0,40}$", re.IGNORECASE)
_POINTS_BACK = re.compile(r"\b(?:this|that|your|our|my|each|any|every|which)\s+$", re.IGNORECASE)
_REFUSED = re.compile(
    r"""
      (?:not|n't|neither|never|either)\b
    | (?:in)?correct\b | wrong\b | right\b | helpful\b | useful\b | clear\b | reasonable\b | consistent\b | verified\b
    | confirmed\b | as\s+follows\b[^:\n]*$ | below\b | above\b | unknown\s+to\b | based\b | obtained\b | found\b
    | (?:in|within)\s+(?:the|this|an?|box|form|format|terms)\b | written\b | expected\b | supposed\b | going\b
    | required\b | to\s+(?:be|find)\b | what\b | it\b
    """,
    re.VERBOSE | re.IGNORECASE,
)
_DISPLAYS = (("\\[", "\\]"), ("$$", "$$"))
_OPENING = re.compile(r"\s{0,20}(?:\\\[|\$\$)")
_NEXT_LINE = re.compile(r"\s{0,200}([^\n]{1,1000})")
_BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
_HAS_VALUE = re.compile(r"[\d$\\]")
_VALUE_LINE = re.compile(r"[ \t*_`>-]{0,6}(?:[-+−–±(\[{|\\$€£¥₹√∞π.\d½⅓⅔¼¾]|[A-J][).:\s*]|[A-J]$)")


def announced(text: str) -> Iterator[str]:
    """What each announcement in words announces, the last one first."""
    if "nswer" not in text and "NSWER" not in text and "hoice" not in text and "ption" not in text:
        return
    places = [(match.end(), match.start(), False) for match in _ANNOUNCED.finditer(text)]
    places += [(match.end(), match.start(), True) for match in _HEADING.finditer(text)]
    for end, start, is_heading in sorted(places, reverse=True):
        before = text[max(0, start - 60) : start]
        if _POINTS_BACK.search(before) and not is_heading:
            continue
        content = _content(text, end, is_heading)
        if content and not _REFUSED.match(content) and not _is_hope(before, content):
            yield content


def _is_hope(before: str, content: str) -> bool:
    """Whether the sentence only speaks of an answer, or holds a box that was never closed."""
    return bool(_BOX.search(content)) or (content[:1].isalpha() and bool(_HOPE.search(before)))


def _content(text: str, start: int, is_heading: bool) -> str:
    """What stands behind an announcement: the rest of its line, or the display or the value below."""
    opening = _OPENING.match(text, start)
    if opening:
        return _display(text, opening)
    line = "" if is_heading else text[start : start + MAX_CHARS].partition("\n")[0].strip()
    if line.strip("*_:. \t"):
        for opener, closer in _DISPLAYS:
            if line.endswith(opener):
                found = text.find(closer, text.index(opener, start) + 2, start + 2 * MAX_CHARS)
                return text[start : found + 2] if found > 0 else ""
        return line
    end_of_line = 0 if is_heading else len(text[start : start + MAX_CHARS].partition("\n")[0])
    below = _NEXT_LINE.match(text, start + end_of_line)
    if below is None:
        return ""
    opening = _OPENING.match(text, below.start(1))
    if opening:
        return _display(text, opening)
    content = below[1].strip()
    num_words = len(content.split())
    is_short = (num_words <= 4 or (num_words <= 14 and _HAS_VALUE.search(content))) and not content.endswith(":")
    return content if _VALUE_LINE.match(content) or is_short or _ANNOUNCED.match(content) else ""


def _display(text: str, opening: re.Match[str]) -> str:
    closer = "\\]" if opening[0].endswith("[") else "$$"
    end = text.find(closer, opening.end(), opening.end() + MAX_CHARS)
    if end < 0:
        return text[opening.end() : opening.end() + MAX_CHARS].partition("\n")[0].strip()
    return text[opening.start() : end + 2].strip()
