r"""The final answer in a policy's raw text.

One idea: an answer has to be announced. ``#### n``, ``\boxed{...}`` and ``<answer>`` announce it for certain, and
the last of them wins whatever prose follows; then comes "the answer is ...". A number that merely
stands last in the text is not an answer unless that is asked for: guessing it would reward rollouts
that broke off. What was only thought is no answer.

Everything here is linear in the text's length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline_lib.grading.exact import parse_number
from pipeline_lib.grading.extraction.announcements import announced
from pipeline_lib.grading.extraction.last_quantity import last_quantity
from pipeline_lib.grading.extraction.marks import Mark, boxes, hash_lines, tags
from pipeline_lib.grading.extraction.thoughts import without_thoughts
from pipeline_lib.grading.extraction.trimming import formulas_in, trim
from pipeline_lib.grading.spelling import without_invisible

_MARKED = re.compile(r"####|\\f?box|answer", re.IGNORECASE)
_TYPESET = re.compile(r"\\text\w*\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?[A-J]\)?\.?")
_MAX_DEPTH = 3


class Found(NamedTuple):
    """A final answer.

    Args:
        text: without the prose around it.
        is_prose: whether it stood in a sentence, where a letter behind a number is a unit.
    """

    text: str
    is_prose: bool = False


def extract_answer(text: str, *, last_number: bool = False, cut_thoughts: bool = True) -> str | None:
    r"""The final answer that `text` announces, without the prose around it; None when there is none.

    In this order: the last ``#### ...``, ``<answer>...</answer>`` or non-empty ``\boxed{...}`` (``\fbox``, nested
    braces and ``\boxed 2`` included), then the last "answer is ...", then a ``####`` line that may be a heading, then
    the whole text when it is nothing but a number, a formula or the letter of a choice.

    Args:
        text: the policy's raw text, of any length.
        last_number: whether the last number of a text without any of these is its answer.
        cut_thoughts: whether what stands in ``<think>…</think>`` is left out before anything else.

    Example: ``extract_answer(r"So $x=\boxed{\frac{1}{2}}$, not 3.")`` is ``\frac{1}{2}``.
    """
    found = find_answer(text, last_number=last_number, cut_thoughts=cut_thoughts)
    return None if found is None else found.text


def find_answer(text: str, *, last_number: bool = False, cut_thoughts: bool = True) -> Found | None:
    """Like `extract_answer`, with where it stood."""
    text = without_invisible(text)
    if cut_thoughts:
        text = without_thoughts(text)
    found = _announced(text) or _bare(text)
    if found is None and last_number and (quantity := last_quantity(text)) is not None:
        found = Found(quantity, is_prose=True)
    return found


def find_gold(gold: str) -> Found:
    """A gold without its announcement, if it has one."""
    if not _MARKED.search(gold):
        return Found(gold)
    return _announced(without_invisible(gold)) or Found(gold)


def _announced(text: str, depth: int = 0) -> Found | None:
    certain, doubtful = hash_lines(text)
    found = _last(text, [*certain, *boxes(text), *tags(text)], depth)
    if found is None:
        answers = (trim(content) for content in announced(text))
        found = next((Found(answer, is_prose=True) for answer in answers if answer), None)
    return found or _last(text, doubtful, depth)


def _last(text: str, marks: list[Mark], depth: int) -> Found | None:
    """The last non-empty one; boxes are taken as they are, lines and tags are cut down to their answer."""
    for (start, end), kind in sorted(marks, reverse=True):
        content = text[start:end]
        if kind == "box":
            plain = _TYPESET.sub(r"\1", content) if "nswer" in content else ""
            found = (_announced(plain) if plain else None) or Found(content.strip())
        else:
            inside = _announced(content, depth + 1) if depth < _MAX_DEPTH and _MARKED.search(content) else None
            found = inside or Found(trim(content), is_prose=True)
        if found.text:
            return found
    return None


def _bare(text: str) -> Found | None:
    text = text.strip()
    if not text or "\n" in text or len(text) > 20_000:
        return None
    formulas = formulas_in(text.rstrip("."))
    if formulas and formulas[0][:2] == (0, len(text.rstrip("."))):
        return Found(trim(text))
    is_formula = text.startswith("\\") and not any(part in text for part in (" ", "=", "box"))
    if is_formula or _CHOICE.fullmatch(text) or parse_number(text) is not None:
        return Found(text)
    return None
