"""Inputs that have hung, crashed or fooled graders: each gets a grade in time, and nothing is left behind.

Every case is a prediction and a gold, made when it is needed, and the grades that are right for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline_lib.grading import Grade, GradingPool, grade

pytestmark = pytest.mark.slow

LIMIT_S = 10.0
MAX_WORKER_BYTES = 1 << 30
NOT_CORRECT = frozenset({Grade.WRONG, Grade.UNPARSED, Grade.TIMEOUT})
EVIL = "__import__('os').system('touch pwned')"

Case = tuple[str, str, frozenset[Grade]]


def boxed(text: str, gold: str = "5", grades: frozenset[Grade] = NOT_CORRECT) -> Case:
    return rf"So the answer is $\boxed{{{text}}}$.", gold, grades


def raw(text: str, gold: str = "5", grades: frozenset[Grade] = NOT_CORRECT) -> Case:
    return text, gold, grades


RIGHT = frozenset({Grade.CORRECT})
WRONG = frozenset({Grade.WRONG})
MIB = 1 << 20

CASES: dict[str, Callable[[], Case]] = {
    # towers, factorials and other numbers that nobody can write down
    "tower": lambda: boxed("9^{9^{9^9}}"),
    "tower of three": lambda: boxed("7^{7^{9}}"),
    "tower in the gold": lambda: boxed("5", "9^{9^{9^{9^9}}}"),
    "tower on both sides": lambda: boxed("9^{9^{9^9}}", "9^{9^{9^8}}"),
    "tower without braces": lambda: boxed("9^9^9^9^9"),
    "tower in text": lambda: raw("The answer is 9**9**9**9**9"),
    "huge exponent": lambda: boxed("2^{999999999999}"),
    "huge negative exponent": lambda: boxed("2^{-999999999999}"),
    "huge e": lambda: boxed("1e999999999"),
    "huge power of ten": lambda: boxed(r"1.5 \times 10^{999999999}"),
    "factorial": lambda: boxed("10000000!"),
    "factorial of a factorial": lambda: boxed("(((9!)!)!)!"),
    "factorial in the gold": lambda: boxed("1", "99999999!"),
    "factorial quotient": lambda: boxed(r"\frac{9999999!}{9999998!}", "9999999"),
    "binomial": lambda: boxed(r"\binom{1000000000}{100000000}"),
    "binomial of middling size": lambda: boxed(r"\binom{999999}{499999}"),
    "gamma": lambda: boxed(r"\Gamma(99999999)"),
    "root of a tower": lambda: boxed(r"\sqrt{9^{9^{9}}}"),
    "logarithm of a tower": lambda: boxed(r"\log(9^{9^{99}})"),
    "sine of a huge number": lambda: boxed(r"\sin(10^{99999})"),
    "modulus of a tower": lambda: boxed(r"7^{7^{7^7}} \bmod 10"),
    "many powers": lambda: boxed("+".join(f"{k}^{{{9999 + k}}}" for k in range(2, 40))),
    "polynomial to expand": lambda: boxed("(a+b+c+d+e+f+g+h)^{60}", "(a+b+c+d+e+f+g+h)^{59}(h+a+b+c+d+e+f-g)"),
    # objects that are large once they are built
    "sum": lambda: boxed(r"\sum_{i=1}^{1000000000} i^i"),
    "product": lambda: boxed(r"\prod_{i=1}^{1000000000} i"),
    "integral": lambda: boxed(r"\int_0^{99999} e^{x^{x^x}} dx"),
    "limit": lambda: boxed(r"\lim_{x \to \infty} x^{x^{x^x}}"),
    "matrix power": lambda: boxed(r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{999999999}"),
    "large matrix": lambda: boxed(
        r"\begin{pmatrix}" + r"\\".join("&".join(["1"] * 80) for _ in range(80)) + r"\end{pmatrix}"
    ),
    "long list": lambda: boxed(",".join(map(str, range(20_000)))),
    "long set": lambda: boxed(r"\{" + ",".join(map(str, range(20_000))) + r"\}", r"\{1,2\}"),
    "nested sets": lambda: boxed(r"\{" * 200 + r"\}" * 200, r"\{1\}"),
    "range": lambda: boxed(r"\{1, 2, \ldots, 10^{12}\}"),
    "repeated matrices": lambda: boxed(r"\begin{pmatrix}1&2\\3&4\end{pmatrix}" * 12),
    "memory bomb": lambda: boxed("(10^{9999})^{9999}"),
    "memory bomb by multiplication": lambda: boxed(r"\cdot".join(["10^{9999}"] * 40)),
    # nesting
    "open braces": lambda: raw(r"\boxed{" + "{" * 50_000),
    "closed braces": lambda: boxed("{" * 50_000 + "1" + "}" * 50_000),
    "closing braces": lambda: raw(r"\boxed{3" + "}" * 50_000, "3", frozenset(Grade)),
    "nested fractions": lambda: boxed(r"\frac{1}{" * 5000 + "2" + "}" * 5000),
    "nested roots": lambda: boxed(r"\sqrt{" * 300 + "2" + "}" * 300),
    "nested brackets": lambda: boxed(r"\left(" * 400 + "x" + r"\right)" * 400),
    "nested boxes": lambda: raw(r"\boxed{" * 20_000 + "7" + "}" * 20_000),
    "brackets in the gold": lambda: boxed("1", "(" * 50_000),
    # length
    "integer equal to itself": lambda: boxed("7" * 100_000, "7" * 100_000, RIGHT),
    "integer with thousands commas": lambda: boxed(f"{10**4200 + 7:,}", str(10**4200 + 7), RIGHT),
    "integer with another last digit": lambda: boxed("7" * 99_999 + "8", "7" * 100_000, WRONG),
    "integer of the other sign": lambda: boxed("-" + "7" * 100_000, "7" * 100_000, WRONG),
    "long decimal": lambda: boxed("0." + "3" * 100_000, "0." + "3" * 100_000 + "0", RIGHT),
    "long fraction": lambda: boxed(rf"\frac{{{'7' * 50_000}}}{{{'7' * 49_999}8}}"),
    "megabyte of text": lambda: raw("word " * (MIB // 5)),
    "megabyte of text and a box": lambda: raw("word " * (MIB // 5) + r"\boxed{5}", "5", RIGHT),
    "megabyte of boxes": lambda: raw(r"\boxed{" * (MIB // 7)),
    "megabyte of boxes without braces": lambda: raw(r"\boxed" * (MIB // 6)),
    "megabyte of empty boxes": lambda: raw(r"\boxed{}" * (MIB // 8)),
    "megabyte of hashes": lambda: raw("#" * MIB),
    "megabyte of hash lines": lambda: raw("#### \n" * (MIB // 6)),
    "megabyte of dollars": lambda: raw("The answer is " + "$" * MIB),
    "megabyte of spaces": lambda: raw("The answer is" + " " * MIB),
    "megabyte of digits": lambda: raw("#### " + "1" * MIB),
    "megabyte of commas": lambda: raw("#### " + "1," * (MIB // 2)),
    "megabyte of stops": lambda: raw("#### 6" + "." * MIB),
    "megabyte of backslashes": lambda: boxed("\\" * MIB),
    "megabyte of announcements": lambda: raw("the answer is " * (MIB // 14)),
    "megabyte of words in the box": lambda: boxed("apples " * (MIB // 7)),
    "megabyte of units": lambda: boxed("5 " + "cm " * (MIB // 3), "6"),
    "megabyte of equals": lambda: boxed("x=" * (MIB // 2)),
    "megabyte of times": lambda: boxed(r"1 \times " * (MIB // 9) + "=6"),
    "megabyte of text commands": lambda: boxed(r"\text{ cm}" * (MIB // 10), "6"),
    "megabyte of stars": lambda: raw("#### " + "*" * MIB),
    "megabyte of gold": lambda: boxed("5", "5 " * (MIB // 2)),
    "digits and commas": lambda: raw("The answer is that " + "1,111" * (MIB // 5)),
    # bytes that are no text
    "nul": lambda: boxed("5\0"),
    "nul alone": lambda: raw("\0" * 1000),
    "lone surrogate": lambda: boxed("5\ud800"),
    "lone surrogate in algebra": lambda: boxed("x+\udfff", "1+x"),
    "lone surrogate in the gold": lambda: boxed("x+1", "1+\ud800"),
    "right to left": lambda: boxed("\u202e15\u202c", "51"),
    "combining marks": lambda: boxed("x" + "\u0301" * 10_000, "x+1"),
    "emoji": lambda: boxed("🙂" * 5000, "x+1"),
    "line separators": lambda: raw("#### 6\u2028\u2029\x85"),
    # code, which is only ever text
    "code in the box": lambda: boxed(EVIL),
    "code as the gold": lambda: boxed("5", EVIL),
    "code after hashes": lambda: raw("#### " + EVIL),
    "code in an announcement": lambda: raw("The answer is " + EVIL),
    "code in a formula": lambda: boxed(rf"\frac{{1}}{{{EVIL}}}", "x+1"),
    "code in text": lambda: boxed(rf"\text{{{EVIL}}}+1", "x+1"),
    "code as a function": lambda: boxed("lambda: open('pwned','w')", "x+1"),
    "code for sympy": lambda: boxed("Integer(1).__class__.__mro__", "x+1"),
    "code for latex": lambda: boxed(r"\immediate\write18{touch pwned}\input{/etc/passwd}", "x+1"),
    "code as a subscript": lambda: boxed(f"x_{{{EVIL}}}", "x"),
    "code in braces": lambda: boxed("{{7*7}}", "50"),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(1, deadline_s=2.0) as opened:
        yield opened


@pytest.fixture(scope="module")
def peak_bytes(pool: GradingPool) -> Iterator[list[int]]:
    """The most memory that a worker was seen with, watched from a thread."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    peak[0] = max(peak[0], child.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    yield peak
    done.set()
    thread.join()


def in_a_thread(work: Callable[[], Grade]) -> Grade:
    """What `work` returns when it is called in a thread that is not the main one; fails when it takes too long."""
    grades: list[Grade] = []
    thread = threading.Thread(target=lambda: grades.append(work()), daemon=True)
    started = time.monotonic()
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive(), f"no grade after {LIMIT_S} s"
    assert time.monotonic() - started < LIMIT_S
    assert grades, "the grader raised"
    return grades[0]


def ask(pool: GradingPool, prediction: str, gold: str) -> Grade:
    pool.submit("case", prediction, gold)
    return pool.poll(block=True)[0][1]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_input_gets_its_grade_in_time_and_harms_nothing(
    name: str, pool: GradingPool, peak_bytes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prediction, gold, grades = CASES[name]()
    assert in_a_thread(lambda: ask(pool, prediction, gold)) in grades
    assert list(tmp_path.iterdir()) == []
    assert in_a_thread(lambda: ask(pool, "#### 5", "5")) is Grade.CORRECT
    assert in_a_thread(lambda: ask(pool, r"\boxed{2^{x+1}}", f"2^{{1+x}}+{len(name)}-{len(name)}")) is Grade.CORRECT
    assert peak_bytes[0] <= MAX_WORKER_BYTES


def test_the_default_deadline_holds_for_the_plain_function_too() -> None:
    assert grade(r"\boxed{2^{x+2}}", "2^{2+x}") is Grade.CORRECT  # the worker has started
    prediction, gold, grades = CASES["gamma"]()
    assert in_a_thread(lambda: grade(prediction, gold)) in grades
    assert in_a_thread(lambda: grade(r"\boxed{2^{x+1}}", "2^{1+x}")) is Grade.CORRECT


def test_no_worker_outlives_its_pool() -> None:
    before = set(psutil.Process().children(recursive=True))
    with GradingPool(2, deadline_s=30.0) as pool:
        pool.submit("hangs", r"\boxed{\Gamma(99999999)}", "5")
        pool.submit("done", r"\boxed{2^{x+1}}", "2^{1+x}")
        assert pool.poll(block=True) == [("done", Grade.CORRECT)]
        assert pool.num_processes == 2
        workers = set(psutil.Process().children(recursive=True)) - before
        assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
