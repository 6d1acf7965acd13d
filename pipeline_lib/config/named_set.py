"""What one entry of ``evaluation.datasets`` says: which problems, in which format, under which name.

``gsm8k`` | ``gsm8k=PATH`` | ``aime:math=PATH``. The colon was taken because it leaves no doubt: an ``@`` is a generated
world's scale, after the format (``tiny-word@2``), and a path may hold colons but stands behind the first ``=``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A test set.

    Args:
        name: how reports and metrics call it.
        dataset: whose format its rows, prompts and answers have.
        path: local file or folder, or ``hub:owner/name``; None takes the dataset's own place.
    """

    name: str
    dataset: str
    path: str | None

    @classmethod
    def parse(cls, text: str) -> NamedSet:
        """The set that `text` names.

        Raises:
            ValueError: a name that metrics cannot have, or a named set without a path.

        Example: ``NamedSet.parse("aime:math=aime.jsonl") == NamedSet("aime", "math", "aime.jsonl")``
        """
        front, _, path = text.partition("=")
        name, colon, dataset = front.partition(":")
        if colon and not (re.fullmatch(r"[\w.-]+", name) and dataset and path):
            raise ValueError(
                f"{text!r}: expected NAME:DATASET=PATH, for example aime:math=aime.jsonl, the name of letters, digits, "
                "`-`, `_` and `.`"
            )
        return cls(name, dataset if colon else front, path or None)
