r"""The last number or formula of a text, for those who take it for the answer where none is announced."""

from __future__ import annotations

import re

from pipeline_lib.grading.extraction.trimming import ANY_NUMBER, formulas_in

_COMMAND = re.compile(r"-?\\(?:[dtc]?frac|sqrt|binom)(?:\[[^\[\]]*\])?(?:\s*\{[^{}]*\}){1,2}")
MAX_CHARS = 4000
"""Only so much of a text's end is looked at."""


def last_quantity(text: str) -> str | None:
    r"""The last number of a text; where that stands in a formula, the formula, or what it comes to behind its ``=``.

    Example: ``last_quantity(r"He eats $\frac{3}{4}$ of it.") == r"\frac{3}{4}"``
    """
    text = text[-MAX_CHARS:]
    found: list[tuple[int, str]] = []
    covered: list[tuple[int, int]] = []
    for start, end, content in formulas_in(text):
        if re.search(r"\d|\\pi|\\sqrt", content):
            found.append((start, content.rpartition("=")[2].strip() or content))
        covered.append((start, end))
    for match in _COMMAND.finditer(text):
        if not _is_inside(match.start(), covered):
            found.append((match.start(), match[0]))
            covered.append(match.span())
    found += [
        (m.start(), m[0].strip().strip("*"))
        for m in ANY_NUMBER.finditer(text)
        if not _is_inside(m.start() + 1, covered)
    ]
    return max(found)[1] if found else None


def _is_inside(place: int, spans: list[tuple[int, int]]) -> bool:
    return any(start <= place < end for start, end in spans)
