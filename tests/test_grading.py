from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.config import ConfigError, GradingConfig, PipelineConfig, apply_overrides
from pipeline_lib.grading import Conventions, Grade, Graded, GradingPool, extract_answer, grade, grade_answer
from pipeline_lib.grading.compare import Undecided, grade_without_algebra
from pipeline_lib.grading.exact import parse_number

DATA = Path(os.environ.get("COPPICE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5+7=12\n#### 12", "12"),
        ("#### 5\nno, wait\n#### 7", "7"),
        ("#### 42 dollars, not 43", "42 dollars"),
        ("#### 5 in all", "5"),
        ("#### 60 miles per hour on average", "60 miles per hour"),
        ("The answer is $2$, $3$ and $x$.", "2, 3, x"),
        ("#### 42. That is 6 times 7.", "42"),
        ("####\n42", "42"),
        ("#### $1,234.50", "$1,234.50"),
        ("#### 7 and 8", "7 and 8"),
        ("#### 5 p.m.", "5 p.m"),
        ("#### 5 million", "5 million"),
        (r"so $x=\boxed{\frac{1}{\sqrt{2}}}$, not 3.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1} or rather \boxed{\{2,3\}}", r"\{2,3\}"),
        (r"so $\boxed 2$.", "2"),
        (r"\fbox{9}", "9"),
        (r"\boxed{4} and then \boxed{", "4"),
        (r"\boxed{4} and then \boxed{}", "4"),
        ("{" * 5000 + r"\boxed{3}", "3"),
        ("#### Step 4: add them\n" + r"\boxed{7}", "7"),
        (r"\boxed{3}" + "\n#### 2. Check the sum", "3"),
        (r"\boxed{5}. The answer is 6.", "5"),
        ("The answer is 12 because 3+9=12, not 13.", "12"),
        ("**Answer:** The answer is **18**.", "18"),
        ("The answer is $x^2$ as shown.", "x^2"),
        ("The answer is that Tom has 5 apples.", "5"),
        ("17", "17"),
        ("$x+1$.", "x+1"),
        (r"\frac{3}{4}", r"\frac{3}{4}"),
    ],
)
def test_the_announced_answer_is_extracted(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", ["", "5+12=17", "She has 17 apples.", r"\boxed{", r"\boxed{}", "5\n6", "####", "Hm."])
def test_a_number_that_is_not_announced_is_no_answer(text: str) -> None:
    assert extract_answer(text) is None
    assert grade(text, "17") is Grade.UNPARSED


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-5", Fraction(-5)),
        ("−5", Fraction(-5)),
        ("-$5", Fraction(-5)),
        ("$-5", Fraction(-5)),
        ("1,234,567.50", Fraction(2469135, 2)),
        (r"1{,}000", Fraction(1000)),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        (r"\dfrac{-3}{4}", Fraction(-3, 4)),
        (r"-\frac34", Fraction(-3, 4)),
        (r"\tfrac{1.5}{2}", Fraction(3, 4)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        ("2 1/2", Fraction(5, 2)),
        (r"1.5\times 10^{3}", Fraction(1500)),
        ("2e-3", Fraction(1, 500)),
        (r"$\$5$.", Fraction(5)),
        (r"5\text{ cm}^2", Fraction(5)),
        (r"\text{12 apples}", Fraction(12)),
        ("3 square feet", Fraction(3)),
        (r"90^\circ", Fraction(90)),
        ("50 percent", Fraction(50)),
    ],
)
def test_numbers_are_read_exactly(text: str, value: Fraction) -> None:
    number = parse_number(text)
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1/0",
        "1,23",
        "1,2",
        "2 pi",
        r"2\pi",
        "5 million",
        "2^3",
        "1+1",
        "12:30",
        "5 x",
        "3i",
        "1e9999",
        "--5",
    ],
)
def test_what_is_not_just_a_number_is_not_read_as_one(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    "text", [r"3\text{ million}", r"2\mathrm{e}", "5x", "(1,2)", r"\frac{1}{2", "1/2/3", "9" * 30_000]
)
def test_nor_is_half_of_an_expression(text: str) -> None:
    assert parse_number(text) is None


@given(st.integers(), st.integers(-(10**9), 10**9).filter(bool))
def test_every_spelling_of_a_number_is_the_number(numerator: int, denominator: int) -> None:
    assert grade_without_algebra(f"#### {numerator:,}", str(numerator)) is Grade.CORRECT
    value = Fraction(numerator, denominator)
    written = rf"\frac{{{numerator}}}{{{denominator}}}"
    assert grade_without_algebra(rf"\boxed{{{written}}}", f"{value.numerator}/{value.denominator}") is Grade.CORRECT
    assert grade_without_algebra(rf"\boxed{{{written}}}", str(value + 1)) is Grade.WRONG


@given(st.text(max_size=200), st.text(min_size=1, max_size=20))
def test_no_text_breaks_the_quick_path(prediction: str, gold: str) -> None:
    for text in (prediction, rf"\boxed{{{prediction}}}", "#### " + prediction):
        assert isinstance(grade_without_algebra(text, gold), (Grade, Undecided))


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("#### 5.0", "5", Grade.CORRECT),
        ("#### 5%", "5", Grade.CORRECT),
        ("#### 50%", "0.5", Grade.CORRECT),
        ("#### 50%", "5", Grade.WRONG),
        ("#### 0.333", "1/3", Grade.WRONG),
        (r"\boxed{10*2=20}", "20", Grade.CORRECT),
        (r"\boxed{x=5}", "5", Grade.CORRECT),
        (r"\boxed{5}", "x=5", Grade.CORRECT),
        (r"\boxed{\dfrac{x}{2}}", r"\frac x2", Grade.CORRECT),
        (r"\boxed{\text{East}}", "east", Grade.CORRECT),
        (r"\boxed{\text{east}}", r"\text{seat}", Grade.WRONG),
        (r"\boxed{9^{9^{9^{9}}}}", "5", Grade.UNPARSED),
        (r"\boxed{2^{99999999}}", "5", Grade.UNPARSED),
        (r"\boxed{12345!}", "5", Grade.UNPARSED),
        (r"\boxed{" + "(" * 60 + "x" + ")" * 60 + "}", "y", Grade.UNPARSED),
        (r"\boxed{" + "x+" * 1500 + "1}", "y", Grade.UNPARSED),
        (r"\boxed{5}", "work ... #### 5", Grade.CORRECT),
        (r"\boxed{5}", "", Grade.WRONG),
        ("#### " + "9" * 5000, "9" * 5000, Grade.CORRECT),
        ("#### " + "9" * 5000, "9" * 4999 + "8", Grade.WRONG),
    ],
)
def test_what_needs_no_algebra_is_judged_at_once(prediction: str, gold: str, expected: Grade) -> None:
    assert grade_without_algebra(prediction, gold) is expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("9" * 100_000, "9" * 100_000, Grade.CORRECT),
        ("9" * 100_000, "9" * 99_999 + "8", Grade.WRONG),
        ("00" + "9" * 100_000, "9" * 100_000, Grade.CORRECT),
        ("9" * 100_000 + ".00", "9" * 100_000, Grade.CORRECT),
        ("1," + "000," * 30_000 + "000", "1" + "0" * 90_003, Grade.CORRECT),
        ("-" + "9" * 100_000, "9" * 100_000, Grade.WRONG),
        ("-0." + "0" * 30_000, "0", Grade.CORRECT),
        ("9" * 100_000, "5", Grade.WRONG),
    ],
)
def test_integers_of_any_length_are_compared_digit_by_digit(answer: str, gold: str, expected: Grade) -> None:
    assert grade("#### " + answer, gold) is expected


def test_long_hostile_texts_stay_cheap() -> None:
    # Quadratic scanning would take minutes here; the limit is pytest's own.
    for text in (r"\boxed{" * 50_000, "####" * 50_000, "#### " + "1," * 50_000, "answer is " * 20_000, "$" * 100_000):
        assert isinstance(grade_without_algebra(text, "5"), (Grade, Undecided))


def test_every_gsm8k_gold_equals_itself_in_its_own_solution() -> None:
    files = [DATA / "gsm8k" / f"{split}.parquet" for split in ("train", "test")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"no GSM8K at {DATA}/gsm8k; set COPPICE_TEST_DATA to the folder that holds gsm8k/")
    import pyarrow.parquet as pq

    solutions = [text for file in files for text in pq.read_table(file)["answer"].to_pylist()]
    assert len(solutions) == 8792
    golds = [re.sub(",", "", text.rpartition("####")[2].strip()) for text in solutions]
    assert {grade_without_algebra(text, gold) for text, gold in zip(solutions, golds, strict=True)} == {Grade.CORRECT}
    assert all(
        grade_without_algebra(t, str(int(gold) + 1)) is Grade.WRONG for t, gold in zip(solutions, golds, strict=True)
    )
    assert all(
        grade_without_algebra(text, other) is Grade.WRONG
        for text, gold, other in zip(solutions, golds, golds[1:] + golds[:1], strict=True)
        if int(gold) != int(other)
    )


@pytest.mark.slow
def test_brackets_matter_and_a_hang_in_a_thread_leaves_no_process() -> None:
    import psutil

    before = set(psutil.Process().children(recursive=True))
    cases = {"hang": (r"\Gamma(99999999)", "5"), "closed": ("[1,2]", "[1,2)"), "order": ("x+1", "1+x")}

    def work() -> dict[str, Grade]:
        with GradingPool(1, deadline_s=0.5) as pool:
            for key, (answer, gold) in cases.items():
                pool.submit(key, rf"\boxed{{{answer}}}", gold)
            grades: dict[str, Grade] = {}
            while pool.num_in_flight:
                grades |= dict(pool.poll(block=True))
        return grades

    with ThreadPoolExecutor(1) as threads:
        grades = threads.submit(work).result(timeout=60)
    assert grades == {"hang": Grade.TIMEOUT, "closed": Grade.WRONG, "order": Grade.CORRECT}
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize(
    ("answer", "gold", "convention", "by_default", "when_changed"),
    [
        ("2, 1", "1, 2", {"any_order": False}, Grade.CORRECT, Grade.WRONG),
        ("1, 2", "1, 2, 3", {"any_order": False}, Grade.WRONG, Grade.WRONG),
        (r"\{2, 1\}", r"\{1, 2\}", {"any_order": False}, Grade.CORRECT, Grade.CORRECT),
        ("(2, 1)", "(1, 2)", {"any_order": True}, Grade.WRONG, Grade.WRONG),
        (r"5\%", "0.05", {"percent": "unit"}, Grade.CORRECT, Grade.WRONG),
        (r"5\%", "5", {"percent": "unit"}, Grade.CORRECT, Grade.CORRECT),
        (r"5\%", "5", {"percent": "fraction"}, Grade.CORRECT, Grade.WRONG),
        ("5", r"5\text{ cm}", {"ignore_units": False}, Grade.CORRECT, Grade.WRONG),
        ("5 apples", "5", {"ignore_units": False}, Grade.CORRECT, Grade.CORRECT),
        ("5 m", "5 cm", {"ignore_units": True}, Grade.WRONG, Grade.WRONG),
        ("0.333", r"\frac{1}{3}", {"rounded": True}, Grade.WRONG, Grade.CORRECT),
        ("0.34", r"\frac{1}{3}", {"rounded": True}, Grade.WRONG, Grade.WRONG),
        ("0.3", r"\frac{1}{3}", {"rounded": True}, Grade.WRONG, Grade.WRONG),
        (r"33.3\%", r"\frac{1}{3}", {"rounded": True}, Grade.WRONG, Grade.CORRECT),
        ("3.14", r"\pi", {"rounded": True}, Grade.WRONG, Grade.CORRECT),
        ("3.15", r"\pi", {"rounded": True}, Grade.WRONG, Grade.WRONG),
        (r"2\sqrt{3}", "3.464", {"rounded": True}, Grade.WRONG, Grade.CORRECT),
        (r"1\frac{1}{2}", "1.5", {"mixed_numbers": False}, Grade.CORRECT, Grade.WRONG),
    ],
)
def test_conventions_change_what_counts_as_equal(
    answer: str, gold: str, convention: dict[str, Any], by_default: Grade, when_changed: Grade
) -> None:
    prediction = rf"\boxed{{{answer}}}"
    assert grade(prediction, gold) is by_default
    assert grade(prediction, gold, conventions=Conventions(**convention)) is when_changed


def test_the_last_number_is_an_answer_only_where_that_is_asked_for() -> None:
    text = "He pays 3 * 4 = 12 dollars for 3 books."
    assert grade_answer(text, "3") == Graded(Grade.UNPARSED, None)
    assert grade_answer(text, "3", conventions=Conventions(last_number=True)) == Graded(Grade.CORRECT, "3")
    assert grade(text + "\n#### 12", "3", conventions=Conventions(last_number=True)) is Grade.WRONG


def test_a_users_convention_goes_before_the_datasets_and_that_before_the_default() -> None:
    user, dataset = GradingConfig(rounded=True), GradingConfig(rounded=False, percent="unit")
    assert Conventions.of(user, dataset) == Conventions(rounded=True, percent="unit")
    with pytest.raises(ConfigError, match=r"grading\.percent"):
        apply_overrides(PipelineConfig(), ["grading.percent=maybe"])
