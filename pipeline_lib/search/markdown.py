r"""Where steps end in what instruction-tuned models write: Markdown, numbered steps, formulas on lines of their own.

One idea: a line is a step unless something is left open after it. What is left open takes in what follows, and the
blank lines between. Two things leave open:

1. a span that the line stands in, from where it opens to where it closes: a code fence; a formula between ``\[`` and
   ``\]`` or ``$$``, or an environment, within a paragraph; a table. What never closes is no span;
2. what the line itself says: a heading or a label such as ``**Step 2:**``, which names what comes; ``<think>``; a line
   that announces, "so we get:".

Every character is looked at a fixed number of times, so a text takes time in proportion to its length.

The paper (arXiv 2501.01478), as far as it is known to us, does not say how it cuts.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator

Span = tuple[int, int]

# The mark, and what follows it on its line. An item of a list may begin with a fence, a quotation may hold one.
_FENCE = re.compile(r"(?P<mark>[`~][`~]{2,}+)(?P<info>[^\n]*+)")  # the first character by itself is found sooner
_BEFORE_FENCE = re.compile(r"[ \t>]*+(?P<item>(?:[-*+]|\d++[.)])[ \t]++)?")
# `\\` is a line break, so the bracket behind it opens nothing: it holds a length, as in `\\[4pt]`.
_FORMULA = re.compile(r"`[^`\n]*+`|\\(?:\\|\$|\[|\]|begin\{|end\{)|\$\$")
_BLANK_LINE = re.compile(r"\n[ \t\r]*+\n")
_TABLE_RULE = re.compile(r"\n[ \t>]*+\|?+[ \t:]*+-[-|: \t]*+\r?+(?=\n|\Z)")
_LABEL = re.compile(
    r"""(?:>\s*)*(?:
        >   # a blank line of a quotation
      | \#{1,6}\s(?!\s*\\?\$?[-+]?[\d.,/]+\s*$)   # a heading, not `#### 42`
        .*
      | (?:[-*+]|[0-9]+[.)])?\s*(?:\*\*|__)[^*_]*(?:\*\*|__)\s*:?   # a line in bold, an item's mark before it or not
      | (?:\*\*|__)?(?:step|part|case)\s+(?:\d+|[ivx]+|[a-z])\s*[.:)]?(?:\*\*|__)?\s*:?
      | (?:[-*+]|[0-9]+[.)])   # an item's mark alone
      | (?:---+|\*\*\*+|===+)   # a rule
      | </?[a-z][\w-]*>   # a tag alone: <think>
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_ANNOUNCING_MARKS = frozenset(":=,+([{：，")  # "so we get:", a formula that goes on
_ANNOUNCING_ENDS = ("\\\\", r"\times", r"\cdot", r"\div", r"\implies", r"\Rightarrow")  # the first ends a row
_ROW_WITH_SPACING = re.compile(r"\\\\\[[^\]\n]{1,9}\]$")
_SPACING_CHARS = 13  # as many at a line's end hold it
# What these can begin or end with: most lines do not, which is much faster to see.
_LABELLING = frozenset("#>*_-+=<0123456789SsPpCc")
_ANNOUNCING = _ANNOUNCING_MARKS.union("\\]*_$stvw")


def step_ends(text: str, candidates: Iterable[int]) -> Iterator[int]:
    r"""Those of `candidates` after which nothing is left open.

    Args:
        text: one rollout's.
        candidates: character positions at which a step may end, such as right after each line, ascending.

    Example: "**Step 1:**\nSo we get:\n\\[\nx=2\n\\]\nDone." has two steps; the first ends before "Done.".
    """
    spans, none = iter(_spans(text)), (len(text), len(text) + 1)
    start, stop = next(spans, none)
    last, is_open = 0, False
    for end in candidates:
        while stop <= end:
            start, stop = next(spans, none)
        if start < end:
            is_open = False  # the line that closes the span decides
        else:
            piece = text[last:end].strip()
            if piece:  # a blank line leaves open what was
                may_be_open = piece[-1] in _ANNOUNCING or piece[0] in _LABELLING or "\n" in piece
                is_open = may_be_open and _is_open(piece)
            if not is_open:
                yield end
        last = end


def _is_open(piece: str) -> bool:
    """Whether the last line of a text, white space around it left out, names or announces what comes after it."""
    line = piece.rpartition("\n")[2].lstrip() if "\n" in piece else piece
    if line[-1] in _ANNOUNCING and _announces(line):
        return True
    return line[0] in _LABELLING and _may_be_label(line) and _LABEL.fullmatch(line) is not None


def _may_be_label(line: str) -> bool:
    """False for most lines that are no label, such as items of a list, and for no label: much faster than the rules."""
    if line[0] in "0123456789-+*":
        return " " not in line or "**" in line or "__" in line
    return line[0] not in "SsPpCc" or line[:4].casefold() in ("step", "part", "case")


def _announces(line: str) -> bool:
    """Whether a line announces what comes after it, by its end, or by what stands before a mark that closes there."""
    if line.endswith(("**", "__")):
        line = line[:-2]
    elif line[-1] == "$":
        line = line[:-1]
    last = line[-1:]
    if last in _ANNOUNCING_MARKS or line.endswith(_ANNOUNCING_ENDS):
        return True
    return last == "]" and _ROW_WITH_SPACING.search(line, len(line) - _SPACING_CHARS) is not None


def _spans(text: str) -> list[Span]:
    """What is cut nowhere inside, from left to right without overlap."""
    fences = _fences(text) if "```" in text or "~~~" in text else []
    tables = _tables(text) if "|" in text else []
    formulas = _formulas(text, fences) if any(mark in text for mark in (r"\[", "$$", r"\begin{")) else []
    joined: list[Span] = []
    for start, end in sorted([*fences, *tables, *formulas]):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _fences(text: str) -> list[Span]:
    """Blocks of code. A fence that never closes, or that another one follows before it does, stays with its next line.

    Source: CommonMark 0.31, section 4.5, which runs a fence that is not closed up to the end of the text.
    """
    spans: list[Span] = []
    opened: tuple[int, int, str] | None = None
    for begin, end, mark, may_close in _fence_lines(text):
        if opened is not None:
            first_begin, first_end, first_mark = opened
            if not mark.startswith(first_mark):  # of another kind, or shorter: part of the code
                continue
            spans.append((first_begin, end if may_close else _end_of_next_line(text, first_end)))
        opened = None if opened is not None and may_close else (begin, end, mark)
    if opened is not None:
        spans.append((opened[0], _end_of_next_line(text, opened[1])))
    return spans


def _fence_lines(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """Where each line with a fence begins and ends, its mark, and whether it can close a block: nothing else on it."""
    for fence in _FENCE.finditer(text):
        begin = text.rfind("\n", 0, fence.start()) + 1
        before = _BEFORE_FENCE.fullmatch(text, begin, fence.start())
        mark, info = fence["mark"], fence["info"].strip()
        if before is not None and not (mark[0] == "`" and "`" in info):  # else it is code within its line
            yield begin, fence.end(), mark, not info and not before["item"]


def _end_of_next_line(text: str, position: int) -> int:
    """Where the first line that is not blank ends after `position`, which is a line's end."""
    following = re.compile(r"\s*+[^\n]*+").match(text, position)
    return following.end() if following else position


def _tables(text: str) -> list[Span]:
    """Tables: a row of heads, a rule such as ``|---|---|``, and the rows below it.

    Source: GitHub Flavored Markdown, section 4.10; here a row of the body has a ``|`` too.
    """
    spans: list[Span] = []
    for rule in _TABLE_RULE.finditer(text):
        start = text.rfind("\n", 0, rule.start()) + 1
        if "|" not in rule[0] or "|" not in text[start : rule.start()] or (spans and start < spans[-1][1]):
            continue
        end = following = rule.end()
        while following < len(text):
            line_end = text.find("\n", following + 1)
            line_end = len(text) if line_end < 0 else line_end
            if "|" not in text[following:line_end]:
                break
            end = following = line_end
        spans.append((start, end))
    return spans


def _formulas(text: str, fences: list[Span]) -> list[Span]:
    """Displayed formulas and environments that close within their paragraph, as TeX wants it, outside of code."""
    spans: list[Span] = []
    opened: dict[str, int] = {}  # by the mark that closes it
    environments: list[int] = []
    after = 0  # the mark before
    ahead = iter([*fences, (len(text), len(text))])
    fence = next(ahead)
    for found in _FORMULA.finditer(text):
        mark = found[0]
        if mark[0] == "`" or mark in (r"\\", r"\$"):
            continue
        position = found.start()
        while fence[1] <= position:
            fence = next(ahead)
        if position >= fence[0]:
            continue
        if (opened or environments) and _has_blank_line(text, after, position, fences):
            opened.clear()
            environments.clear()
        after = found.end()
        if mark == r"\begin{":
            environments.append(position)
        elif mark == r"\end{" and environments:
            spans.append((environments.pop(), after))
        elif mark in opened:
            spans.append((opened.pop(mark), after))
        elif mark in (r"\[", "$$"):
            opened[{r"\[": r"\]"}.get(mark, mark)] = position
    return spans


def _has_blank_line(text: str, start: int, end: int, fences: list[Span]) -> bool:
    """Whether a paragraph ends between two places, in a line that is no code."""
    for found in _BLANK_LINE.finditer(text, start, end):
        before = bisect_right(fences, (found.start(), len(text))) - 1
        if before < 0 or fences[before][1] <= found.start():
            return True
    return False
