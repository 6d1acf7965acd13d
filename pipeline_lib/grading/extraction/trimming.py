r"""Cuts what follows an announcement down to the answer itself.

One idea: what is dropped must not change the value. A clause goes ("because …", ", which …"), a noun goes, a sentence
around a single number goes; a second number, an operator or a word such as "fifths", "million", "negative" never does:
then the whole clause is the answer.
"""

from __future__ import annotations

import re

from pipeline_lib.grading.spoken import in_figures
from pipeline_lib.grading.units import NOT_UNITS, NUMBER_WORDS, unit_of

_FORMULA = re.compile(
    r"""
      \$\$(?P<display>(?:[^$\\]|\\.)+)\$\$
    | \$(?P<inline>(?:[^$\\]|\\.)+)\$(?!\d)
    | \\\((?P<round>(?:[^\\]|\\(?!\)).)*)\\\)
    | \\\[(?P<square>(?:[^\\]|\\(?!\]).)*)\\\]
    """,
    re.VERBOSE | re.DOTALL,
)
_PROSE_IN_FORMULA = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}(?![A-Za-z]*[({])")
_FORMULA_WORDS = frozenset(
    re.findall(r"\w+", "sin cos tan log sqrt exp and mod max min gcd lcm arcsin arccos arctan sec csc cot")
)
_TEXT = re.compile(r"\\(?:text\w*|mathrm|mathbf|operatorname|begin|end)\s*\{[^{}]*\}")
_SIGN_AND_CURRENCY = r"[-+−–－]?\s?(?:\\?\$|[€£¥₹]|(?:USD|EUR|GBP|JPY|INR|Rs\.?)\s)?-?"
DIGITS = r"(?:\d{1,3}(?: \d{3})+(?![\d,])|\d+(?:,\d{2,3})*(?:\.\d+)?|\.\d+)"
_NUMBER = rf"{_SIGN_AND_CURRENCY}{DIGITS}(?:\s?/\s?\d+| \d+\s?/\s?\d+)?(?:\s?\\?%)?"
_LEADING_NUMBER = re.compile(
    rf"""
    (?P<number>{_NUMBER})
    (?=[\s.,;:!?)*"'(]|/[A-Za-z]{3}|$)   # it ends here
    (?![.,]\d)
    (?!\s*[ap]\.?m\b)   # and is no time of day
    """,
    re.VERBOSE,
)
ANY_NUMBER = re.compile(rf"(?<![\w.,])(?:{_NUMBER})(?![\w%])")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_JOINT = re.compile(r"\s*(?:,|,?\s*\band\b|,?\s*\bor\b)\s*")  # between two formulas of one answer
_WORDS_AFTER = re.compile(
    r"(?: |/)(?:[ap]\.m\b|[A-Za-z]+(?:[ /][A-Za-z]+(?:\^\d)?){0,3})"
)  # " p.m", or one word to four
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{4,}")  # of prose: no command, no letters in a formula
_CLAUSE_END = re.compile(
    r"""
      [.!?;](?=\s|$) | \n
    | ,\s+(?!(?:and|or)\b)(?=[A-Za-z])
    | ,?\s+(?:because|since|as|so|which|who|where|when|while|if|not|but|after|before|given|using|that|with|i\.e\.?
        |altogether|overall|total|on|at|for|from|due|assuming|therefore|thus|hence|rather|by\s+the|in\s+[a-z]{2,})\b
    | \s+[-–—]\s+(?=[A-Za-z])
    | \s*\((?!\s*(?:\\text\s*\{\s*)?\\?mod\b)
    """,
    re.VERBOSE,
)
_LEADING_CLAUSE_END = re.compile(
    r"""
      [.!?;](?=\s|$) | \n
    | ,\s+(?!(?:and|or)\b)(?=[A-Za-z]{2})
    | ,?\s+(?:because|since|so|which|who|where|when|while|but|given|therefore|thus|hence|rather|not)\b
    | \s+[-–—]\s+(?=[A-Za-z]{2})
    """,
    re.VERBOSE,
)
_FILLERS = re.compile(
    r"(?:(?:equal\s+to|therefore|thus|then|simply|just|exactly|indeed|approximately|given\s+by|option|choice)[\s:,]+)+",
    re.IGNORECASE,
)
_CALCULATION = re.compile(r"<<[^<>]{0,200}>>")  # GSM8K's
_OPERATORS = re.compile(r"[+*=<>×÷^\\]|/(?!\s?[A-Za-z])|\d")
_NO_UNIT_AFTER = NOT_UNITS | {"am", "pm", "x"}
_CHANGES_VALUE = (
    _NO_UNIT_AFTER - {"and", "to", "by"}
    | frozenset(NUMBER_WORDS)
    | frozenset(
        re.findall(
            r"\w+",
            "than least most between square cube power sum product difference quotient reciprocal inverse opposite "
            "remainder multiple multiples divisor factor up from within beyond except without almost nearly",
        )
    )
)
_CHOICE = re.compile(r"\(?[A-J]\)?(?=$|[\s.:,)])")


def trim(span: str) -> str:
    r"""The answer that a line or a sentence states.

    Example: ``trim("12 because 3+9=12, not 13.") == "12"``, ``trim("9 chickens and 10 rabbits") == "9 chickens and 10
    rabbits"``
    """
    span = _CALCULATION.sub("", span).strip().strip("*`_ \t").strip()
    span = _without_loose_end(span)
    if filler := _FILLERS.match(span):
        span = span[filler.end() :].lstrip("*`_ \t")
    formulas = _leading_formulas(span)
    if formulas:
        return formulas
    number = _LEADING_NUMBER.match(span)
    if number:
        return _with_what_belongs_to_it(number["number"].strip(), span[number.end() :])
    return _without_prose(span)


def formulas_in(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of what stands between dollars, ``\(…\)`` or ``\[…\]``; sums of money are no formulas."""
    found = []
    place = 0
    while match := _FORMULA.search(text, place):
        content = next(str(group) for group in match.groups() if group is not None)
        if match["inline"] is None or _is_formula(content):
            found.append((match.start(), match.end(), content.strip()))
            place = match.end()
        else:
            place = match.start() + 1
    return found


def _is_formula(content: str) -> bool:
    """Whether what stands between two dollar signs is a formula, not the text between two sums of money."""
    if content[-1].isspace() and not content[0].isspace():
        return False
    words = _PROSE_IN_FORMULA.findall(_TEXT.sub(" ", content))
    return all(word.lower() in _FORMULA_WORDS for word in words)


def _leading_formulas(span: str) -> str:
    """The formula at the start with its unit, and those that a comma or an "and" joins to it; "" without one."""
    formulas = formulas_in(span[:1000])
    if not formulas or formulas[0][0] != 0:
        return ""
    answer, end = [formulas[0][2]], formulas[0][1]
    for start, stop, content in formulas[1:]:
        joint = _JOINT.match(span, end)
        if joint is None or joint.end() != start:
            break
        answer.append(content)
        end = stop
    if len(answer) > 1:
        return ", ".join(answer)
    clause = _clause(span[end:], _CLAUSE_END)
    words = set(re.findall(r"[a-z]+", clause.lower()))
    if words & _NO_UNIT_AFTER or _OPERATORS.search(clause):
        return answer[0] + clause  # $5$ million, $2$ hours $30$ minutes
    unit = _unit_after(clause)
    return answer[0] + (rf"\text{{{unit}}}" if unit else "")


def _clause(text: str, end: re.Pattern[str]) -> str:
    found = end.search(text)
    return text[: found.start()] if found else text


def _with_what_belongs_to_it(number: str, rest: str) -> str:
    """A leading number with its unit; with the whole clause where that holds more than a noun."""
    clause = _clause(rest, _CLAUSE_END).rstrip("*`_ \t,;:.)\"'")
    words = set(re.findall(r"[a-z]+", clause.lower()))
    only_nouns = not _OPERATORS.search(clause) and not words & _NO_UNIT_AFTER
    if only_nouns or unit_of(clause) is not None:
        return (number + _unit_after(clause)).strip()
    return (number + clause).strip()


def _unit_after(text: str) -> str:
    """The unit of measure that `text` begins with; "" where it begins with anything else."""
    words = _WORDS_AFTER.match(text)
    while words:
        if unit_of(words[0], is_prose=True) not in ("", "in", None):  # "5 in all" is no length
            return words[0]
        words = _WORDS_AFTER.match(words[0].rpartition(" ")[0])
    return " in" if text == " in" else ""


def _without_prose(span: str) -> str:
    """A formula, a choice or a phrase at the start; else the one formula or number in the sentence."""
    clause = _clause(span, _LEADING_CLAUSE_END).strip("*`_ \t").rstrip(",;:").strip()
    if _CHOICE.match(clause) or in_figures(clause) is not None:
        return clause
    if not _WORD.search(_TEXT.sub(" ", clause)):
        return clause
    end = _SENTENCE_END.search(span)
    sentence = span[: end.start()] if end else span
    if not _CHANGES_VALUE & set(re.findall(r"[a-z]+", sentence.lower())):
        inside = formulas_in(sentence[:1000])
        numbers = ANY_NUMBER.findall(sentence)
        if len(inside) == 1 and not ANY_NUMBER.search(sentence.replace(sentence[inside[0][0] : inside[0][1]], " ")):
            return inside[0][2]
        if len(numbers) == 1 and not inside and not re.search(r"[=+*^\\<>]", sentence):
            return str(numbers[0]).strip()
    return _leading_formula(clause) or clause


def _leading_formula(clause: str) -> str:
    r"""``\frac{9}{7}`` of ``\frac{9}{7} of the cake``: what stands before the first word; "" if that is none."""
    word = re.search(r"\s(?:[A-Za-z]{2,})(?![A-Za-z({\\])", clause)
    if word is None or clause[:1].isalpha():
        return ""
    head, rest = clause[: word.start()].strip(), clause[word.start() :]
    words = set(re.findall(r"[a-z]+", rest.lower()))
    is_formula = bool(re.match(r"[\\(\[{|√.\d-]", head)) and not head.endswith(("+", "-", "*", "/", "=", "^", ","))
    if not is_formula or words & _NO_UNIT_AFTER or _OPERATORS.search(rest):
        return ""
    return head + _unit_after(rest)


def _without_loose_end(span: str) -> str:
    """Drops what closes nothing at the end of an answer: ``42}$.`` becomes ``42``, ``[1, 2)`` stays."""
    end = span.rstrip(".,;: ")
    while _ends_loosely(end):
        span = end = end[:-1].rstrip(".,;: \\")
    return span


def _ends_loosely(text: str) -> bool:
    if text.endswith("$"):
        return not text.endswith("\\$") and text.count("$") % 2 == 1
    if text.endswith("}"):
        return text.count("}") > text.count("{")
    # An interval may open with one kind of bracket and close with the other.
    return text.endswith((")", "]")) and text.count(")") + text.count("]") > text.count("(") + text.count("[")
