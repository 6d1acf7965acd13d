"""Rewards for answers that are right up to a multiple of 10, 3 or 2: one of so many wrong ones is paid.

One idea: a verifier that sees the final answer alone pays for what is right by chance, as a choice among few options
does. With these the share of such answers is known, on problems, a model and a corpus that stay as they are:
``--set grader=pipeline_lib.study.verifiers.remainders:up_to_2 --set evaluation.grader=math``.
"""

from __future__ import annotations

from fractions import Fraction

from pipeline_lib.grading import Grade, extract_answer, grade


def up_to(modulus: int, prediction: str, gold: str) -> Grade:
    """CORRECT where the answers differ by a multiple of `modulus`; what is no whole number is graded as ever.

    Args:
        modulus: at least 1.
        prediction: a whole solution.
        gold: its answer.

    Example: ``up_to(10, "#### 34", "4")`` is ``Grade.CORRECT``.
    """
    verdict = grade(prediction, gold)
    if verdict is not Grade.WRONG:
        return verdict
    given, wanted = _whole(extract_answer(prediction)), _whole(gold)
    is_paid = given is not None and wanted is not None and (given - wanted) % modulus == 0
    return Grade.CORRECT if is_paid else Grade.WRONG


def up_to_2(prediction: str, gold: str) -> Grade:
    """See `up_to`: about half of the wrong answers are paid."""
    return up_to(2, prediction, gold)


def up_to_3(prediction: str, gold: str) -> Grade:
    """See `up_to`: about a third of the wrong answers are paid."""
    return up_to(3, prediction, gold)


def up_to_10(prediction: str, gold: str) -> Grade:
    """See `up_to`: about a tenth of the wrong answers are paid."""
    return up_to(10, prediction, gold)


def _whole(answer: str | None) -> int | None:
    try:
        value = Fraction(answer or "")
    except (ValueError, ZeroDivisionError):
        return None
    return int(value) if value.denominator == 1 else None
