"""Whether an answer equals the gold: at once where that is certain, else left to a worker.

As much as possible is decided without real values. Equal spellings are equal, two numbers are compared as fractions,
two phrases as phrases, formulas exactly, modulo a large prime; what is left, roots of sums, logarithms and the like,
goes to another process.

Departures from the field's graders:
1. Decimals are exact: 0.333 is not 1/3.
2. Nothing that carries meaning is removed before it is read: no letter is a unit that may be a variable, ``R`` is not
   ``r``, ``1 1/2`` not ``11/2``, a phrase keeps its signs.
3. A phrase is never given to algebra.
4. What is too heavy for algebra is UNPARSED: it was never compared, and WRONG would claim that it was. So is an answer
   to a gold that nobody can read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from pipeline_lib.grading.conventions import DEFAULT, Conventions
from pipeline_lib.grading.exact import MAX_NUMBER_CHARS, Number, read_number
from pipeline_lib.grading.extract import Found, find_answer, find_gold
from pipeline_lib.grading.formulas.equality import Equality, UndecidedError
from pipeline_lib.grading.formulas.nodes import UnreadableError, UnsupportedError, symbols_of
from pipeline_lib.grading.formulas.reader import read
from pipeline_lib.grading.formulas.tokens import tokens_of
from pipeline_lib.grading.phrases import is_name, is_phrase, read_choice, same_phrase, sides_of
from pipeline_lib.grading.quantities import equal_number, read_quantities, same_quantities
from pipeline_lib.grading.spelling import normalise_answer, unwrap
from pipeline_lib.grading.spoken import in_figures
from pipeline_lib.grading.units import split_unit, units_agree
from pipeline_lib.types import Grade

MAX_ALGEBRA_CHARS = 600
MAX_NESTING = 24
_HEAVY = re.compile(
    r"""
      \d{120,}   # sympy factors and prints what it reads
    | \^ \s* \{? \s* -? \d{5,}   # a huge exponent
    | \^ \s* [{(] [^{}()^]{0,40} \^ \s* [{(]? [^{}()^]{0,40} \^   # a tower of powers
    | \^ \s* \w{1,40} \s* \^ \s* \w{1,40} \s* \^
    | \^ \s* [{(]? \s* \d{3,40} \s* \^ \s* [{(]? \s* \d   # 2003^{2002^{2001}}
    | \d{5,} \s* \}? \)? \s* !   # the factorial of a large number
    | ! \s* \)? \s* !   # a factorial of a factorial
    | binom \s* \{? \s* \d{5,}
    """,
    re.VERBOSE,
)
_INTEGER = re.compile(r"-?[1-9]\d{0,17}", re.ASCII)
_LONG_NUMBER = re.compile(r"(?P<sign>[-+]?)\s*(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<decimals>\d*))?")
_NUMERAL = re.compile(r"(?P<digits>[0-9A-Fa-f]{1,64})(?:_\{?(?P<base>\d{1,2})\}?)?")  # 1011, 1011_2
_TIME = re.compile(r"0?(\d{1,2}):(\d{2})(?::(\d{2}))?")
_AND = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*,?\s*(and|or)\s*\}|\b(and|or)\b)\s*")  # "1 and 2", "1, or 2"
_CURRENCY = re.compile(r"[$€£¥₹](?=\s?-?[\d.])")
_QUALIFIER = re.compile(
    r"[,;]?\s*(?:\\text\s*\{\s*[,(]?\s*(?:where|for|with|when|if|since|because|approximately|only)\b[^{}]*\}"
    r"|,\s*(?:where|for|with|when|if|since|because)\b).*",
    re.DOTALL,
)
_SEVERAL = re.compile(r"[,;]|\\text|\b(?:and|or)\b")  # in the middle of "x = 1, y = 2"
_SIGNS = {"~": r"\approx"}


class Side(NamedTuple):
    """One side of a comparison.

    Args:
        text: in normal spelling.
        is_prose: whether a letter behind a number and a space is a unit.
    """

    text: str
    is_prose: bool = False

    def with_text(self, text: str) -> Side:
        return Side(text, self.is_prose)


class Undecided(NamedTuple):
    """What only real values can tell: both sides, ready for a worker.

    Args:
        answer: the policy's, normalised.
        gold: the gold answer, normalised.
        conventions: what counts as equal.
    """

    answer: str
    gold: str
    conventions: Conventions = DEFAULT


def grade_without_algebra(prediction: str, gold: str, conventions: Conventions = DEFAULT) -> Grade | Undecided:
    """The grade where it takes no algebra, else what a worker needs.

    Args:
        prediction: the policy's raw text.
        gold: the final answer alone; one that still carries its announcement is cut down to it.
        conventions: what counts as equal where opinions differ.

    Example: ``grade_without_algebra("... #### 1,234", "1234")`` is CORRECT.
    """
    found = find_answer(prediction, last_number=conventions.last_number, cut_thoughts=conventions.cut_thoughts)
    if found is None:
        return Grade.UNPARSED
    gold_found = find_gold(gold) if conventions.announced_gold else Found(gold)
    if found.text == gold_found.text:
        return _grade(bool(gold_found.text.strip()))
    if _INTEGER.fullmatch(found.text) and _INTEGER.fullmatch(gold_found.text):
        return Grade.WRONG
    answer = Side(normalise_answer(found.text), found.is_prose)
    return judge(answer, _normalised_gold(gold_found), conventions)


@lru_cache(maxsize=1024)  # one gold is compared with all rollouts of its problem
def _normalised_gold(gold: Found) -> Side:
    return Side(normalise_answer(gold.text), gold.is_prose)


def judge(answer: Side, gold: Side, conventions: Conventions, depth: int = 0) -> Grade | Undecided:
    """The grade of two answers in normal spelling, or what a worker needs."""
    equal = _are_equal_numbers(answer, gold, conventions)
    if equal is None and is_spelt_alike(answer.text, gold.text):
        return _grade(bool(gold.text))
    if equal is None:
        equal = _are_equal_choices(answer.text, gold.text, conventions)
    if equal is None:
        equal = _are_equal_times(answer.text, gold.text)
    if equal is not None:
        return _grade(equal)
    if depth < 3:
        shorter = _shortened(answer, gold)
        if shorter is None:
            return Grade.WRONG
        if shorter != (answer, gold):
            return judge(*shorter, conventions, depth + 1)
    return _judge_words(answer, gold, conventions)


def _shortened(answer: Side, gold: Side) -> tuple[Side, Side] | None:
    """Both sides without what only one says beside its value: left side, qualifier; None where left sides differ."""
    ours, theirs = sides_of(answer.text), sides_of(gold.text)
    if len(ours) > 1 and len(theirs) > 1:
        return _without_common_name(answer, gold, ours, theirs)
    if len(ours) > 1 or len(theirs) > 1:
        short = (answer.with_text(_value_of(ours)), gold.with_text(_value_of(theirs)))
        if short != (answer, gold):
            return short
    for first, second in ((answer, gold), (gold, answer)):
        shorter = in_figures(first.text) or _without_label(first.text, second.text)
        if shorter is None and (cut := _QUALIFIER.search(first.text)) and not _QUALIFIER.search(second.text):
            shorter = first.text[: cut.start()].strip() or None
        if shorter is not None:
            changed = first.with_text(shorter)
            return (changed, gold) if first is answer else (answer, changed)
    return answer, gold


def _without_label(text: str, other: str) -> str | None:
    """What stands behind the letter of a choice, ``(C) 12``, where the other side names no choice."""
    choice = read_choice(text)
    if choice is None or not choice[1] or read_choice(other) is not None:
        return None
    return choice[1]


def _without_common_name(
    answer: Side, gold: Side, ours: list[tuple[str, str]], theirs: list[tuple[str, str]]
) -> tuple[Side, Side] | None:
    """The right sides of two named values; as they are where no words name them: that is an equation."""
    names = [sides[0][1] for sides in (ours, theirs)]
    if not all(map(is_name, names)) or not any(map(is_phrase, names)):
        return answer, gold
    has_letter = not all(map(is_phrase, names))
    if not has_letter and not same_phrase(*names):
        return None
    return answer.with_text(_value_of(ours)), gold.with_text(_value_of(theirs))


def _value_of(sides: list[tuple[str, str]]) -> str:
    r"""What an assignment, or a chain such as ``10*2 = 20`` or ``\pi \approx 3.14``, comes to; else the text itself."""
    whole = "".join(rf" {_SIGNS.get(sign, sign)} {side}" if sign else side for sign, side in sides)
    first, rest = sides[0][1], sides[1:]
    if not rest or any(_SEVERAL.search(side) for _, side in rest[:-1]):
        return whole
    if first and not is_name(first):
        if len(sides) == 2 and rest[0][0] == "=" and is_name(rest[0][1]) and is_constant(first):
            return first  # 5 = x
        if not is_constant(first):
            return whole
        rest = sides
    about = next((place for place, (sign, _) in enumerate(rest) if sign == "~" and place), None)
    return rest[-1 if about is None else about - 1][1]


def is_constant(text: str) -> bool:
    """Whether a text is a formula without letters."""
    if is_too_heavy(text):
        return False
    try:
        return not symbols_of(read(text))
    except UnreadableError:
        return False


def _judge_words(answer: Side, gold: Side, conventions: Conventions) -> Grade | Undecided:
    """`judge` for what is neither a number nor a choice: quantities, phrases, formulas."""
    equal = _are_equal_quantities(answer, gold, conventions)
    if equal is not None:
        return _grade(equal)
    (left, unit), (right, gold_unit) = split_unit(answer.text), split_unit(gold.text)
    if not units_agree(unit, gold_unit, ignore_units=conventions.ignore_units):
        return Grade.WRONG
    if not left or not right or is_phrase(left) or is_phrase(right):
        return _grade(same_phrase(answer.text, gold.text))
    return judge_formulas(formula_of(left), formula_of(right), conventions)


def formula_of(text: str) -> str:
    r"""A formula as the reader takes it: no currency signs, ``\land`` for "and", ``\lor`` for "or"."""
    text = _AND.sub(lambda m: rf" \l{m[1] or m[2]} ", _CURRENCY.sub("", text))
    return unwrap(text.strip())


def judge_formulas(answer: str, gold: str, conventions: Conventions) -> Grade | Undecided:
    """Compares two formulas as far as exact values go."""
    if is_too_heavy(answer) or is_too_heavy(gold):
        return Grade.UNPARSED
    try:
        right = read(gold, mixed_numbers=conventions.mixed_numbers)
    except UnsupportedError:
        return Undecided(answer, gold, conventions)
    except UnreadableError:
        return Grade.UNPARSED
    try:
        left = read(answer, mixed_numbers=conventions.mixed_numbers)
        return _grade(Equality(conventions).same(left, right))
    except (UndecidedError, UnsupportedError):
        return Undecided(answer, gold, conventions)
    except UnreadableError:
        return Grade.WRONG


def is_spelt_alike(left: str, right: str) -> bool:
    """Whether two answers have the same tokens."""
    if left == right:
        return True
    if max(len(left), len(right)) > MAX_ALGEBRA_CHARS:
        return False
    return _tokens(left) == _tokens(right)


@lru_cache(maxsize=4096)
def _tokens(text: str) -> list[tuple[str, str]]:
    return [tuple(token) for token in tokens_of(text)]  # type: ignore[misc]


def _are_equal_numbers(answer: Side, gold: Side, conventions: Conventions) -> bool | None:
    """Whether both sides are the same number; None unless both are numbers."""
    left, right = (_read_number(side, conventions.mixed_numbers) for side in (answer, gold))
    if left is not None and right is not None:
        return left.equals(right, conventions)
    if max(len(answer.text), len(gold.text)) > MAX_NUMBER_CHARS:
        ours, theirs = _digits(answer.text), _digits(gold.text)
        return None if ours is None or theirs is None else ours == theirs
    if (numeral := _parse_numeral(answer.text)) and (other := _parse_numeral(gold.text)):
        return _same_numeral(numeral, other)
    return None


def _read_number(side: Side, mixed_numbers: bool) -> Number | None:
    return read_number(unwrap(side.text, is_text=True), mixed_numbers=mixed_numbers, is_prose=side.is_prose)


def _are_equal_choices(answer: str, gold: str, conventions: Conventions) -> bool | None:
    """Whether both sides name the same choice; None unless both name one."""
    ours, theirs = read_choice(answer), read_choice(gold)
    if ours is None or theirs is None:
        return None
    if not conventions.choice_text and (ours[1] or theirs[1]):
        return None
    if ours[0] != theirs[0]:
        return False
    return not (ours[1] and theirs[1]) or same_phrase(ours[1], theirs[1]) or is_spelt_alike(ours[1], theirs[1])


def _are_equal_times(answer: str, gold: str) -> bool | None:
    """Whether two times of day are the same; None unless one side reads like one: 10:30 is not 1:3."""
    ours, theirs = _TIME.fullmatch(answer), _TIME.fullmatch(gold)
    if ours is not None and theirs is not None:
        return ours.groups() == theirs.groups()
    is_ratio = ":" in answer and ":" in gold
    return False if is_ratio and (ours or theirs) else None


def _are_equal_quantities(answer: Side, gold: Side, conventions: Conventions) -> bool | None:
    """Whether two answers of several quantities are the same; None unless one side is such an answer."""
    ours, theirs = read_quantities(answer.text), read_quantities(gold.text)
    if ours is not None and theirs is not None:
        return same_quantities(ours, theirs)
    if ours is None and theirs is None:
        return None
    quantities, other = (ours, gold) if ours is not None else (theirs, answer)
    assert quantities is not None
    number = _read_number(other, conventions.mixed_numbers)
    if number is not None:
        return equal_number(quantities, number)
    bare = [_read_number(Side(part), conventions.mixed_numbers) for part in formula_of(other.text).split(",")]
    if any(part is None for part in bare):
        parts = re.split(r",|\\l(?:and|or)(?![A-Za-z])", formula_of(other.text))
        bare = [_read_number(Side(part.strip()), conventions.mixed_numbers) for part in parts if part.strip()]
    values = [part.value for part in bare if part is not None]
    if len(values) != len(bare) or len(values) != len(quantities):
        return None
    expected = [quantity.value for quantity in quantities]
    return values == expected or (conventions.any_order and sorted(values) == sorted(expected))


def _grade(is_right: bool) -> Grade:
    return Grade.CORRECT if is_right else Grade.WRONG


def _parse_numeral(text: str) -> tuple[str, int | None] | None:
    """Digits and base of a numeral such as ``1011_2``; base None where it is not written."""
    match = _NUMERAL.fullmatch(text)
    return (match["digits"].upper(), int(match["base"]) if match["base"] else None) if match else None


def _same_numeral(left: tuple[str, int | None], right: tuple[str, int | None]) -> bool | None:
    """None where no side has a base: those are letters."""
    (digits, base), (other_digits, other_base) = left, right
    if base is None and other_base is None:
        return None
    if base is None or other_base is None:
        return digits == other_digits
    try:
        return int(digits, base) == int(other_digits, other_base)
    except ValueError:  # a digit that the base does not have, or no base at all
        return False


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


def is_too_heavy(text: str) -> bool:
    """Whether a formula is too long, too deep or too large to be an answer."""
    if len(text) > MAX_ALGEBRA_CHARS or _HEAVY.search(text):
        return True
    return max(_nesting(text), default=0) > MAX_NESTING
