"""How each dataset wants its solutions written: where a step ends, and how the answer is announced.

Everything that depends on the dataset's name, apart from reading its files, is in one table, `FORMATS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pipeline_lib.config import ConfigError, GradingConfig

_STEPWISE = "Solve the problem step by step and write each step on a line of its own."


@dataclass(frozen=True, slots=True)
class DatasetFormat:
    """How a dataset's solutions are written.

    Args:
        name: the dataset's, without ``@scale``.
        step_delimiter: what ends a step; it belongs to the step that it ends.
        instruction: appended to every question; "" where the policy was trained on the bare question.
        grading: conventions in which the dataset departs from the defaults.
    """

    name: str
    step_delimiter: str
    instruction: str
    grading: GradingConfig = field(default_factory=GradingConfig)


FORMATS = {
    form.name: form
    for form in (
        DatasetFormat("tiny-word", "\n", ""),
        DatasetFormat("tiny-algebra", "\n", ""),
        DatasetFormat(
            "gsm8k",
            "\n",
            f"{_STEPWISE} The last line is `#### ` and the answer as a plain number.",
            GradingConfig(percent="unit"),  # its golds are integers: 20 for 20%
        ),
        DatasetFormat("math", "\n", rf"{_STEPWISE} Put the final answer, and nothing else, into \boxed{{}}."),
        DatasetFormat("file", "\n", rf"{_STEPWISE} Put the final answer, and nothing else, into \boxed{{}}."),
    )
}


def format_of(dataset: str) -> DatasetFormat:
    """The format of `dataset`; ``tiny-word@2`` has that of ``tiny-word``.

    Raises:
        ConfigError: no dataset is called so.
    """
    form = FORMATS.get(dataset.partition("@")[0])
    if form is None:
        raise ConfigError(f"dataset {dataset!r} is not known; the known ones are {', '.join(FORMATS)}")
    return form


def gold_after_hashes(solution: str) -> str | None:
    r"""GSM8K's gold: what follows the last ``####``, thousands commas removed; None when it is no number.

    Example: ``gold_after_hashes("2*600=1200\n#### 1,200") == "1200"``
    """
    _, mark, tail = solution.rpartition("####")
    number = tail.strip().replace(",", "")
    return number if mark and re.fullmatch(r"-?(\d+(\.\d+)?|\.\d+)", number) else None


_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BARE_TOKEN = re.compile(r"[^\s${}.,;]+")


def gold_in_box(solution: str) -> str | None:
    r"""MATH's gold: the content of the last ``\boxed``; None when there is none, or it is empty or unclosed.

    Example: ``gold_in_box(r"so $\boxed{\frac{1}{2}}$") == r"\frac{1}{2}"`` and ``gold_in_box(r"\boxed 2$") == "2"``
    """
    boxes = list(_BOX.finditer(solution))
    if not boxes:
        return None
    start = boxes[-1].end()
    if not solution.startswith("{", start):
        bare = _BARE_TOKEN.match(solution, start)
        return bare[0] if bare else None
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", solution[start:]):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return solution[start + 1 : start + brace.start()].strip() or None
    return None
