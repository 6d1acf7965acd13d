"""When two questions are one: what must never stand on both sides of a split."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from pipeline_lib.problems.rows import Row

_RAISED = re.compile("([\u00b2\u00b3\u00b9\u2070-\u207f])|([\u2080-\u209c])")  # NFKC makes 22 of 2²
END_MARKS = ".,;:?。 "  # not `!`: 5! is not 5


def normal_question(question: str) -> str:
    r"""What of a question tells it from others: its letters and signs, in Unicode's compatible form and lower case.

    White space is folded and punctuation at the end left out. Raised and lowered signs become ``^`` and ``_``.

    Example: ``normal_question(" How  much\nis 2²? ") == "how much is 2^2"``
    """
    if not question.isascii():
        marked = _RAISED.sub(lambda found: f"^{found[1]}" if found[1] else f"_{found[2]}", question)
        question = unicodedata.normalize("NFKC", marked)
    return " ".join(question.lower().split()).rstrip(END_MARKS)


@dataclass(slots=True)
class Repeats:
    """Rows whose question an earlier row of the same split has asked.

    Args:
        count: how many.
        num_contradicting: how many of them have another answer than the row that was kept.
        first: where the first of them stands, and the row that it repeats.
        first_contradicting: likewise, with both answers.
    """

    count: int = 0
    num_contradicting: int = 0
    first: str = ""
    first_contradicting: str = ""
    _kept: dict[str, tuple[str, int, str]] = field(default_factory=dict)  # file, row and answer by normal question
    _normal: dict[str, str] = field(default_factory=dict)  # some sets repeat each row a hundred times

    def is_new(self, row: Row, question: str, answer: str) -> bool:
        """Whether no earlier row has asked this; a repeat is counted."""
        normal = self._normal.get(question)
        if normal is None:
            normal = self._normal[question] = normal_question(question)
        file, number, kept_answer = self._kept.setdefault(normal, (row.file, row.row, answer))
        if (file, number) == (row.file, row.row):
            return True
        self.count += 1
        kept = f"row {number}" if file == row.file else f"{file}, row {number}"
        self.first = self.first or f"{row.file}, row {row.row}, as {kept}"
        if answer != kept_answer:
            self.num_contradicting += 1
            self.first_contradicting = self.first_contradicting or (
                f"{row.file}, row {row.row}: {answer[:40]!r} instead of {kept_answer[:40]!r}"
            )
        return False

    def describe(self, name: str) -> list[str]:
        """One line about the split `name`; none where nothing was repeated."""
        if not self.count:
            return []
        line = (
            f"{name}: {self.count} rows repeat the question of an earlier one and are left out; the first: {self.first}"
        )
        if self.num_contradicting:
            line += f"; {self.num_contradicting} of them have another answer, the first: {self.first_contradicting}"
        return [line]
