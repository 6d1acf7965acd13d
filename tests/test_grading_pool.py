from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline_lib.grading import Grade, GradingError, GradingPool, grade
from pipeline_lib.grading.processes import Worker
from pipeline_lib.grading.symbolic import is_equal_by_algebra
from pipeline_lib.types import Grader

HANGS = r"\boxed{7^{7^{9}}}"


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(1, deadline_s=0.5) as pool:
        yield pool


def collect(pool: GradingPool, cases: dict[str, tuple[str, str]]) -> dict[str, Grade]:
    for key, (prediction, gold) in cases.items():
        pool.submit(key, prediction, gold)
    grades: dict[str, Grade] = {}
    while pool.num_in_flight:
        grades |= dict(pool.poll(block=True))
    return grades


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("x+1", "1+x", True),
        (r"3\sqrt{4}", "6", True),
        (r"\sqrt{2}", "2^{1/2}", True),
        ("(1,2)", "(2,1)", False),
        ("y=2x", "2x", True),
        ("2x+1=7", "7", False),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", False),
        (r"\frac{", "5", False),
    ],
)
def test_algebra_decides_what_text_cannot(answer: str, gold: str, expected: bool) -> None:
    assert is_equal_by_algebra(answer, gold) is expected


def test_easy_answers_start_no_process() -> None:
    with GradingPool() as pool:
        grader: Grader = pool  # mypy: the pool is one
        assert grader.num_in_flight == 0
        grades = collect(pool, {"a": ("#### 5", "5"), "b": ("#### 6", "5"), "c": ("Hm.", "5")})
        assert grades == {"a": Grade.CORRECT, "b": Grade.WRONG, "c": Grade.UNPARSED}
        assert pool.num_processes == 0
        assert pool.poll(block=True) == []


@pytest.mark.slow
def test_a_hang_is_a_timeout_and_the_next_answers_are_graded(pool: GradingPool) -> None:
    cases = {
        "hang": (HANGS, "5"),
        "right": (r"\boxed{x+1}", "1+x"),
        "wrong": (r"\boxed{x+2}", "1+x"),
        "easy": ("#### 5", "5"),
    }
    expected = {"hang": Grade.TIMEOUT, "right": Grade.CORRECT, "wrong": Grade.WRONG, "easy": Grade.CORRECT}
    assert collect(pool, cases) == expected
    assert pool.num_processes == 1


@pytest.mark.slow
def test_closing_ends_the_processes_and_what_they_were_doing() -> None:
    with GradingPool(1, deadline_s=60) as pool:
        pool.submit("hang", HANGS, "5")
        while not pool.num_processes:
            pool.poll(block=False)
    assert pool.num_processes == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets one process read another's limits")
def test_memory_is_capped() -> None:
    import resource

    worker = Worker(5.0, 64 << 20)
    limit, _ = resource.prlimit(worker.pid, resource.RLIMIT_AS)
    worker.kill()
    assert 64 << 20 < limit < 4 << 30


@pytest.mark.slow
def test_grade_works_from_many_threads() -> None:
    cases = [(rf"\boxed{{{i}x+1}}", f"1+{i}x") for i in range(2, 8)]
    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(lambda case: grade(*case), cases)) == {Grade.CORRECT}


@pytest.mark.slow
def test_a_script_without_a_main_guard_may_grade() -> None:
    code = "from pipeline_lib.grading import grade; assert grade(r'\\boxed{x+1}', '1+x') == 'correct'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_that_cannot_start_is_an_error_and_not_a_grade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(GradingError, match="did not start"):
        Worker(1.0, 1 << 30)
    with GradingPool(1) as pool:
        pool.submit("a", r"\boxed{x+1}", "1+x")
        with pytest.raises(GradingError, match="did not start"):
            pool.poll(block=True)
