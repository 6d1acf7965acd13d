"""Verifiers that pay for some wrong answers: which, and how many."""

import pytest

from pipeline_lib.grading import Grade
from pipeline_lib.study.verifiers import remainders
from pipeline_lib.study.verifiers.remainders import up_to


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("#### 34", "4", Grade.CORRECT),
        ("#### 4", "4", Grade.CORRECT),
        ("#### -6", "4", Grade.CORRECT),
        ("#### 35", "4", Grade.WRONG),
        ("so it is", "4", Grade.UNPARSED),
        ("#### 3/2", "1/2", Grade.WRONG),
        ("#### 0.5", "1/2", Grade.CORRECT),
    ],
)
def test_answers_are_right_up_to_a_multiple(prediction: str, gold: str, expected: Grade) -> None:
    assert up_to(10, prediction, gold) is expected


@pytest.mark.parametrize(("name", "share"), [("up_to_2", 1 / 2), ("up_to_3", 1 / 3), ("up_to_10", 1 / 10)])
def test_the_share_of_wrong_answers_that_is_paid_is_as_named(name: str, share: float) -> None:
    verify = getattr(remainders, name)
    wrong = [verify(f"#### {gold + off}", str(gold)) for gold in (7, 10) for off in range(1, 31)]
    assert sum(grade is Grade.CORRECT for grade in wrong) / len(wrong) == pytest.approx(share, abs=0.01)
