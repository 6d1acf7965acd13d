"""What must hold for every answer: it equals itself in any layout, and no small mistake is ever paid."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from grading_fixtures import FORMS, make_gold, mistakes, same_again

from pipeline_lib.grading import Grade, GradingPool

NUM_GOLDS = 10_000


def graded(pairs: Iterable[tuple[str, str]]) -> list[Grade]:
    """The grade of each (answer, gold), the answer in a box."""
    grades: dict[str, Grade] = {}
    with GradingPool(2) as pool:
        count = 0
        for count, (answer, gold) in enumerate(pairs, start=1):
            pool.submit(str(count - 1), rf"So it is $\boxed{{{answer}}}$", gold)
            grades.update(pool.poll(block=False))
        while pool.num_in_flight:
            grades.update(pool.poll(block=True))
    return [grades[str(place)] for place in range(count)]


def test_every_form_has_answers_and_mistakes_to_make() -> None:
    draw = random.Random(1)
    kinds = {what for form in FORMS for _ in range(40) for what, _ in mistakes(form(draw), draw)}
    assert kinds == {"digit", "sign", "operator", "relation", "letter", "case", "bracket"}


@pytest.mark.slow
def test_every_answer_equals_itself_in_any_layout() -> None:
    draw = random.Random(2)
    pairs = [(again, gold) for gold in (make_gold(draw) for _ in range(1500)) for again in same_again(gold)]
    assert [pair for pair, grade in zip(pairs, graded(pairs), strict=True) if grade is not Grade.CORRECT] == []


@pytest.mark.slow
def test_equality_is_symmetric() -> None:
    draw = random.Random(3)
    golds = [make_gold(draw) for _ in range(300)]
    pairs = [(golds[i], golds[j]) for i in range(0, 300, 7) for j in range(0, 300, 11)]
    pairs += [(again, gold) for gold in golds for again in same_again(gold)]
    there, back = graded(pairs), graded([(gold, answer) for answer, gold in pairs])
    assert [(a is Grade.CORRECT) for a in there] == [(b is Grade.CORRECT) for b in back]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_small_mistake_in_ten_thousand_answers_is_paid() -> None:
    draw = random.Random(4)
    cases = []
    for _ in range(NUM_GOLDS):
        gold = make_gold(draw)
        cases.append((draw.choice(list(mistakes(gold, draw))), gold))
    grades = graded((wrong, gold) for (_, wrong), gold in cases)
    paid = [case for case, grade in zip(cases, grades, strict=True) if grade is Grade.CORRECT]
    assert paid == []
    assert sum(grade is Grade.WRONG for grade in grades) >= 0.99 * NUM_GOLDS
