"""Whether an answer equals the gold: at once where that is certain, else left to a worker.

As much as possible is decided without algebra. Two numbers are compared as fractions, two phrases as phrases,
and equal spellings are equal; what is left, a formula against something else, goes to Math-Verify in another
process, unless it is too heavy to be an answer at all.

Departures from the field's graders:
1. Decimals are exact: 0.333 is not 1/3.
2. A phrase is never given to algebra, which would read "east" as a product of letters and find it
   equal to "seat".
3. What is too heavy for algebra is UNPARSED: it was never compared, and WRONG would claim that it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pipeline_lib.grading.conventions import DEFAULT, Conventions
from pipeline_lib.grading.exact import MAX_NUMBER_CHARS, normalise_answer, parse_number
from pipeline_lib.grading.extract import extract_answer
from pipeline_lib.grading.units import split_unit, units_agree
from pipeline_lib.types import Grade

MAX_ALGEBRA_CHARS = 600
MAX_NESTING = 24
_HEAVY = re.compile(
    r"""
      \d{120,}   # sympy factors and prints what it reads
    | \^ \s* \{? \s* -? \d{5,}   # a huge exponent
    | \^ [^^]{0,12} \^ [^^]{0,12} \^   # a tower of powers
    | \d{4,} \s* \}? \)? \s* !   # the factorial of a large number
    | ! \s* \)? \s* !   # a factorial of a factorial
    | binom \s* \{? \s* \d{5,}
    """,
    re.VERBOSE,
)
_INTEGER = re.compile(r"-?[1-9]\d{0,17}", re.ASCII)
_LONG_NUMBER = re.compile(r"(?P<sign>[-+]?)\s*(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<decimals>\d*))?")
_NAME = r"[A-Za-z](?:_\{?\w+\}?)?(?:\([A-Za-z]\))?"  # x, x_1, f(x)
_WORKING = r"(?:[\d\s.,+\-*/()×÷$^{}]|\\(?:times|cdot|div|d?frac|sqrt|left|right))+"  # 10*2, \frac{6}{2}
_ASSIGNMENT = re.compile(rf"\s*(?:{_NAME}|{_WORKING})\s*=\s*(?P<right_side>[^=]+)")
_BRACKETS = ("(", "[", "\\{")
_MIXED_NUMBER = re.compile(r"(\d)\s*(\\frac|(?<=\s)\d+\s*/)")  # up to where the fraction begins: 1\frac, 1 1/
_NUMERAL = re.compile(r"(?P<digits>[0-9A-Fa-f]{1,64})(?:_\{?(?P<base>\d{1,2})\}?)?")  # 1011, 1011_2
_AND = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*")  # "1 and 2", "1, or 2"
_COMMAND = re.compile(r"\\[A-Za-z]+")
_PHRASE = re.compile(r"[A-Za-z]{4,}")
_TEXT_COMMANDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)(?![A-Za-z])")
_FUNCTIONS = frozenset({"sqrt", "sinh", "cosh", "tanh", "begin", "pmatrix", "matrix", "bmatrix", "frac"})


class Undecided(NamedTuple):
    """What only algebra can tell: both sides, ready for a worker.

    Args:
        answer: the policy's, normalised.
        gold: the gold answer, normalised.
        rounded: whether a decimal equals what rounds to it, see `Conventions`.
    """

    answer: str
    gold: str
    rounded: bool = False


def grade_without_algebra(prediction: str, gold: str, conventions: Conventions = DEFAULT) -> Grade | Undecided:
    """The grade where it takes no algebra, else what a worker needs.

    Args:
        prediction: the policy's raw text.
        gold: the final answer alone; one that still carries its announcement is cut down to it.
        conventions: what counts as equal where opinions differ.

    Example: ``grade_without_algebra("... #### 1,234", "1234")`` is CORRECT.
    """
    answer = extract_answer(prediction, last_number=conventions.last_number)
    if answer is None:
        return Grade.UNPARSED
    if "####" in gold or "\\boxed" in gold:
        gold = extract_answer(gold) or gold
    if answer == gold:
        return Grade.CORRECT
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return Grade.WRONG
    answer, gold = (_with_commas(normalise_answer(side)) for side in (answer, gold))
    return _judge_formulas(*_without_left_side(answer, gold), conventions)


def _with_commas(text: str) -> str:
    """``1 and 2`` as ``1, 2``; a phrase stays."""
    return text if _is_phrase(text) else _AND.sub(", ", text)


def _judge_formulas(answer: str, gold: str, conventions: Conventions) -> Grade | Undecided:
    """`grade_without_algebra` for two normalised formulas, numbers or phrases."""
    if _canonical(answer) == _canonical(gold):
        return _grade(bool(gold))
    equal = _are_equal_numbers(answer, gold, conventions)
    if equal is not None:
        return _grade(equal)
    (answer, unit), (gold, gold_unit) = split_unit(answer), split_unit(gold)
    if not units_agree(unit, gold_unit, ignore_units=conventions.ignore_units) or _have_other_brackets(answer, gold):
        return Grade.WRONG
    if not answer or not gold or _is_phrase(answer) or _is_phrase(gold):
        return _grade(_same_phrase(answer, gold))
    if _is_too_heavy(answer) or _is_too_heavy(gold):
        return Grade.UNPARSED
    if not conventions.mixed_numbers:
        answer, gold = (_MIXED_NUMBER.sub(r"\1\\cdot \2", side) for side in (answer, gold))
    if not conventions.any_order and _is_bare_list(answer) and _is_bare_list(gold):
        answer, gold = f"({answer})", f"({gold})"
    return Undecided(answer, gold, conventions.rounded)


def _are_equal_numbers(answer: str, gold: str, conventions: Conventions) -> bool | None:
    """Whether both sides are the same number; None unless both are numbers."""
    left, right = (parse_number(side, mixed_numbers=conventions.mixed_numbers) for side in (answer, gold))
    if left is not None and right is not None:
        return left.equals(right, conventions)
    if max(len(answer), len(gold)) > MAX_NUMBER_CHARS and (digits := _digits(answer)) and (others := _digits(gold)):
        return digits == others
    if (numeral := _parse_numeral(answer)) and (other := _parse_numeral(gold)):
        return _same_numeral(numeral, other)
    return None


def _grade(is_right: bool) -> Grade:
    return Grade.CORRECT if is_right else Grade.WRONG


def _without_left_side(answer: str, gold: str) -> tuple[str, str]:
    """Drops ``x =`` and ``10*2 =`` where the other side is no equation."""
    if ("=" in answer) != ("=" in gold):
        return _right_side(answer), _right_side(gold)
    return answer, gold


def _right_side(text: str) -> str:
    """What stands behind the ``=`` of an assignment; any other text as it is."""
    match = _ASSIGNMENT.fullmatch(text)
    return normalise_answer(match["right_side"]) if match else text


def _parse_numeral(text: str) -> tuple[str, int | None] | None:
    """Digits and base of a numeral such as ``1011_2``; base None where it is not written."""
    match = _NUMERAL.fullmatch(text)
    return (match["digits"].upper(), int(match["base"]) if match["base"] else None) if match else None


def _same_numeral(left: tuple[str, int | None], right: tuple[str, int | None]) -> bool:
    (digits, base), (other_digits, other_base) = left, right
    if base is None or other_base is None:
        return digits == other_digits
    try:
        return int(digits, base) == int(other_digits, other_base)
    except ValueError:  # a digit that the base does not have, or no base at all
        return False


def _have_other_brackets(answer: str, gold: str) -> bool:
    """A set against a tuple or an interval; Math-Verify would take them for equal."""
    is_bracketed = answer.startswith(_BRACKETS) and gold.startswith(_BRACKETS)
    return is_bracketed and answer.startswith("\\{") != gold.startswith("\\{")


def _is_bare_list(text: str) -> bool:
    """Whether a comma stands outside all brackets."""
    return any(character == "," and depth == 0 for character, depth in zip(text, _nesting(text), strict=True))


def _nesting(text: str) -> Iterator[int]:
    """After each character, how many brackets are open."""
    depth = 0
    for character in text:
        if character in "{([":
            depth += 1
        elif character in "})]":
            depth -= 1
        yield depth


def _digits(text: str) -> tuple[bool, str, str] | None:
    """Whether a plain number is negative, its digits and its decimals, idle zeros left out; in linear time."""
    match = _LONG_NUMBER.fullmatch(text)
    if match is None:
        return None
    whole, decimals = match["whole"].replace(",", "").lstrip("0"), (match["decimals"] or "").rstrip("0")
    is_negative = match["sign"] == "-" and bool(whole or decimals)  # -0 is 0
    return is_negative, whole, decimals


def _canonical(text: str) -> str:
    text = _TEXT_COMMANDS.sub("", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    return re.sub(r"\s+|\$", "", re.sub(r"\{(\w)\}", r"\1", text))


def _is_phrase(text: str) -> bool:
    words = _PHRASE.findall(_COMMAND.sub(" ", text))
    return any(word.lower() not in _FUNCTIONS for word in words)


def _same_phrase(answer: str, gold: str) -> bool:
    left, right = (re.sub(r"[^a-z0-9]+", " ", _COMMAND.sub(" ", side).lower()).strip() for side in (answer, gold))
    return bool(left) and left == right


def _is_too_heavy(text: str) -> bool:
    if len(text) > MAX_ALGEBRA_CHARS or _HEAVY.search(text):
        return True
    return max(_nesting(text), default=0) > MAX_NESTING
