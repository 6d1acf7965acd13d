"""How each dataset wants its solutions written: a step a line, and how the answer is announced.

Everything that depends on the dataset's name, apart from reading its files, is in one table, `FORMATS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from pipeline_lib.config import ConfigError, GradingConfig
from pipeline_lib.grading import GRADING_VERSION
from pipeline_lib.policy.prompting.stop_rule import AnswerMark

_STEPWISE = "Solve the problem step by step and write each step on a line of its own."


@dataclass(frozen=True, slots=True)
class DatasetFormat:
    """How a dataset's solutions are written.

    Args:
        name: the dataset's, without ``@scale``.
        instruction: appended to every question; "" where the policy was trained on the bare question.
        grading: conventions in which the dataset departs from the defaults.
        grading_version: of the grader, as far as this dataset's grades depend on it; part of store keys.
        answer_mark: how the line with the answer is known, where no instruction says it.
    """

    name: str
    instruction: str
    grading: GradingConfig = field(default_factory=GradingConfig)
    grading_version: int = GRADING_VERSION
    answer_mark: AnswerMark = "hashes"


# The tiny worlds' golds are integers and fractions in figures, and their policies' alphabet has neither words of
# measure nor tags: version 2 grades their answers as version 1 did, so what was made under 1 is found again
# (tests/test_grading_versions.py grades the rollouts of a kept home anew).
_TINY_GRADING_VERSION = 1
FORMATS = {
    form.name: form
    for form in (
        DatasetFormat("tiny-word", "", grading_version=_TINY_GRADING_VERSION),
        DatasetFormat("tiny-algebra", "", grading_version=_TINY_GRADING_VERSION, answer_mark="box"),
        DatasetFormat("tiny-arithmetic", "Give the calculation, then '#### ' and the answer."),
        DatasetFormat(
            "gsm8k",
            f"{_STEPWISE} The last line is `#### ` and the answer as a plain number.",
            GradingConfig(percent="unit"),  # its golds are integers: 20 for 20%
        ),
        DatasetFormat(
            "math", rf"{_STEPWISE} Put the final answer, and nothing else, into \boxed{{}}.", answer_mark="box"
        ),
        DatasetFormat(
            "file", rf"{_STEPWISE} Put the final answer, and nothing else, into \boxed{{}}.", answer_mark="box"
        ),
    )
}


def format_of(dataset: str) -> DatasetFormat:
    """The format of `dataset`; ``tiny-word@2`` has that of ``tiny-word``.

    Raises:
        ConfigError: no dataset is called so.
    """
    form = FORMATS.get(dataset.partition("@")[0])
    if form is None:
        raise ConfigError(
            f"dataset {dataset!r} is not known; the known ones are {', '.join(FORMATS)} (a test set under a name of "
            "your own is NAME:DATASET=PATH)"
        )
    return form


def answer_mark(dataset: str, instruction: str) -> AnswerMark:
    r"""What announces an answer: what the instruction names of `####` and `\boxed`, else what the dataset uses."""
    if "####" in instruction:
        return "hashes"
    return "box" if "boxed" in instruction else format_of(dataset).answer_mark


_AMOUNT = re.compile(
    r"""(?P<sign>-?) \s* [$€£]? \s* (?P<sign_too>-?)   # -$5, $-5
        (?P<number>\d{1,3}(,\d{3})+(\.\d+)? | \d+(\.\d+)? | \.\d+)
        \s* %? (\s* (?P<unit>[A-Za-z][A-Za-z ./'-]*))? \s* \.?""",
    re.VERBOSE,
)
# Words after a number that make it another one, or leave it open: `5 million`, `5 and a half`, `5 or so`.
_NO_UNIT = {"and", "or", "to", "half", "hundred", "thousand", "million", "billion", "trillion", "dozen", "x", "e"}


def gold_after_hashes(solution: str) -> str | None:
    r"""GSM8K's gold: the number that follows the last ``####``; None when there is none.

    Thousands commas, a currency sign, a full stop and a unit of letters go. A comma elsewhere is no thousands comma,
    and words that change a number are no unit: such a gold is refused, not guessed.

    Example: ``gold_after_hashes("2*600=1200\n#### $1,200.") == "1200"``, and ``#### 5 apples`` gives "5"
    """
    _, mark, tail = solution.rpartition("####")
    found = _AMOUNT.fullmatch(tail.strip())
    if not mark or found is None or (found["sign"] and found["sign_too"]):
        return None
    if _NO_UNIT & set(re.findall(r"[a-z]+", (found["unit"] or "").lower())):
        return None
    return found["sign"] + found["sign_too"] + found["number"].replace(",", "")


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
