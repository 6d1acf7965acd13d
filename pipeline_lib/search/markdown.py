r"""Where steps end in what instruction-tuned models write: Markdown, numbered steps, formulas on lines of their own.

One idea: a line is a step unless something is left open after it. Open are a formula between ``\[`` and ``\]`` or
``$$``, an environment, a code fence; a heading or a label such as ``**Step 2:**``, which names what comes; a line
that announces, "so we get:". What is left open takes in the next line, and the blank ones between.

The paper (arXiv 2501.01478), as far as it is known to us, does not say how it cuts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)
_LABEL = re.compile(
    r"""\s*(?:
        \#{1,6}\s(?!\s*\\?\$?[-+]?[\d.,/]+\s*$)   # a heading, not `#### 42`
        .*
      | (?:[-*+]|\d+[.)])?\s*(?:\*\*|__)[^*_]*(?:\*\*|__)\s*:?   # a line in bold, an item's mark before it or not
      | (?:\*\*|__)?(?:step|part|case)\s+(?:\d+|[ivx]+|[a-z])\s*[.:)]?(?:\*\*|__)?\s*:?
      | (?:[-*+]|\d+[.)])   # an item's mark alone
      | (?:---+|\*\*\*+|===+)   # a rule
    )\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_ANNOUNCES = re.compile(
    r"""
    (?: [:=,+(\[{]   # "so we get:", a formula that goes on
      | \\\\   # a row of a table or of aligned formulas
      | \\(?:times|cdot|div|implies|Rightarrow)
    )
    (?:\*\*|__|\$)?\s*$   # behind the mark that closes bold text or a formula
    """,
    re.VERBOSE,
)


def step_ends(text: str, line_ends: Iterable[int]) -> Iterator[int]:
    r"""Those of `line_ends` after which nothing is left open.

    Args:
        text: one rollout's.
        line_ends: character positions right after a line's end, ascending.

    Example: "**Step 1:**\nSo we get:\n\\[\nx=2\n\\]\nDone." has two steps; the first ends before "Done.".
    """
    start = 0  # of the step
    for end in line_ends:
        block = text[start:end]
        if block.strip() and _is_open(block):
            continue
        yield end
        start = end


def _is_open(block: str) -> bool:
    line = block.rstrip().rpartition("\n")[2]
    if len(_FENCE.findall(block)) % 2:
        return True
    paragraph = _BLANK_LINE.split(block)[-1]  # a formula that is never closed ends with its paragraph, as in TeX
    if paragraph.count(r"\[") > paragraph.count(r"\]") or paragraph.count("$$") % 2:
        return True
    if paragraph.count(r"\begin{") > paragraph.count(r"\end{"):
        return True
    return _LABEL.fullmatch(line) is not None or _ANNOUNCES.search(line) is not None
