from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from pipeline_lib.grading import Grade, Graded, GradingError, GradingPool, grade, grade_answer
from pipeline_lib.grading.grader import Grader
from pipeline_lib.grading.symbolic import is_equal_by_algebra
from pipeline_lib.grading.workers.worker_process import Worker

HANGS = r"\boxed{\Gamma(99999999)}"


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
        "right": (r"\boxed{2^{x+1}}", "2^{1+x}"),
        "wrong": (r"\boxed{2^{x+2}}", "2^{1+x}"),
        "easy": ("#### 5", "5"),
    }
    expected = {"hang": Grade.TIMEOUT, "right": Grade.CORRECT, "wrong": Grade.WRONG, "easy": Grade.CORRECT}
    assert collect(pool, cases) == expected
    assert pool.num_processes == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="without forks a worker ends with its answer")
def test_a_worker_goes_on_after_what_judged_in_it_was_ended() -> None:
    worker = Worker(0.5, 1 << 30)
    worker.wait_until_ready()
    try:
        for number in range(2):
            assert worker.ask((r"\Gamma(99999999)", "5")) is Grade.TIMEOUT
            while not (judging := psutil.Process(worker.pid).children()):
                time.sleep(0.01)
            judging[0].kill()  # as the kernel does when memory is short, now that nothing is asked
            judging[0].wait()
            assert worker.ask((f"x+{number}", f"1+{number}+x")) is Grade.WRONG  # the answer to this and nothing before
            assert worker.ask((f"x+{number}", f"{number}+x")) is Grade.CORRECT
        assert worker.is_alive
    finally:
        worker.kill()


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
    worker.wait_until_ready()
    limit, _ = resource.prlimit(worker.pid, resource.RLIMIT_AS)
    worker.kill()
    assert 64 << 20 < limit < 4 << 30


@pytest.mark.slow
def test_grade_works_from_many_threads() -> None:
    cases = [(rf"\boxed{{{i}x+1}}", f"1+{i}x") for i in range(2, 8)]
    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(lambda case: grade(*case), cases)) == {Grade.CORRECT}


@pytest.mark.slow
def test_grade_works_from_asyncio() -> None:
    async def grade_all() -> list[Grade]:
        cases = [(rf"\boxed{{{i}y+1}}", f"1+{i}y") for i in range(2, 8)]
        return await asyncio.gather(*(asyncio.to_thread(grade, *case) for case in cases))

    assert set(asyncio.run(grade_all())) == {Grade.CORRECT}


@pytest.mark.slow
def test_a_pool_works_from_many_threads_and_from_asyncio() -> None:
    grades: dict[str, Grade] = {}

    def work(name: str) -> None:
        for i in range(200):
            pool.submit(f"{name}.{i}", rf"\boxed{{{i % 7}+x}}" if i % 20 == 0 else f"#### {i}", f"x+{i % 7}")
        while pool.num_in_flight:
            grades.update(pool.poll(block=True))

    async def work_at_once() -> None:
        await asyncio.gather(*(asyncio.to_thread(work, f"task{i}") for i in range(4)))

    with GradingPool(2) as pool:
        threads = [threading.Thread(target=work, args=(f"thread{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        asyncio.run(work_at_once())
        for thread in threads:
            thread.join()
        assert pool.num_processes <= 2
    assert len(grades) == 8 * 200
    assert sum(verdict is Grade.CORRECT for verdict in grades.values()) == 8 * 10


def test_the_extracted_answer_is_kept_beside_the_grade() -> None:
    assert grade_answer("So it is #### 6", "5") == Graded(Grade.WRONG, "6")
    assert grade_answer("Hm.", "5") == Graded(Grade.UNPARSED, None)
    with GradingPool() as pool:
        pool.submit("a", "So it is #### 6", "5")
        assert pool.poll_answers(block=True) == [("a", Graded(Grade.WRONG, "6"))]


@pytest.mark.slow
@pytest.mark.parametrize("gold", ["", " ", "$ $", r"\boxed{}", r"\frac{", r"\sqrt{x+", ")("])
def test_a_gold_that_cannot_be_read_is_unparsed_and_not_wrong(pool: GradingPool, gold: str) -> None:
    assert grade_answer(r"\boxed{x+1}", gold) == Graded(Grade.UNPARSED, "x+1")
    assert collect(pool, {"a": (r"\boxed{x+2}", gold)}) == {"a": Grade.UNPARSED}


@pytest.mark.slow
def test_closing_ends_a_process_that_is_only_starting() -> None:
    with GradingPool(1) as pool:
        pool.submit("a", r"\boxed{2^{x+1}}", "2^{1+x}")
        while not pool._workers._all:
            time.sleep(0.001)
        (worker,) = pool._workers._all
    assert not worker.is_alive
    assert pool.poll(block=True) == [("a", Grade.TIMEOUT)]


READINGS = r"""
import logging, sys
from math_verify import parse
from pipeline_lib.grading.workers.grading_worker import patch_latex_reader

logging.disable()
if sys.argv[1] == "two stages":
    patch_latex_reader()
for text in sys.argv[2:]:
    print([str(part) for part in parse(f"${text}$", parsing_timeout=None)])
"""
FORMULAS = r"""
x+1; \frac{3}{4}; 3\sqrt{2}-\sqrt[3]{5}; (1,2); [1,2); \{1,2,3\}; (-\infty,2]\cup[3,4); 2+3i; \frac{\pi}{6}; \log_2 8
\begin{pmatrix}1\\2\end{pmatrix}; y=2x+1; x^2-5x+6; 10!; \binom{5}{2}; x>=2; \sin 30^\circ; |x-1|<2; \frac{; 1,000,000
a_1+a_2; e^{i\pi}; 2\pi r; f(x)=x; \pm 3; )(; x(x+2); -\frac{1}{2}x^{-2}; \lfloor x\rfloor; x\in\mathbb{R}; 2^{-99}
"""


@pytest.mark.slow
def test_reading_latex_in_two_stages_reads_the_same() -> None:
    formulas = FORMULAS.strip().replace("\n", "; ").split("; ")

    def read(way: str) -> list[str]:
        command = [sys.executable, "-c", READINGS, way, *formulas]
        return subprocess.check_output(command, text=True).splitlines()

    readings = read("two stages")
    assert len(readings) == len(formulas)
    assert readings == read("one stage")


@pytest.mark.slow
def test_a_script_without_a_main_guard_may_grade() -> None:
    code = "from pipeline_lib.grading import grade; assert grade(r'\\boxed{2^{x+1}}', '2^{1+x}') == 'correct'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_worker_that_cannot_start_is_an_error_and_not_a_grade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(GradingError, match="did not start"):
        Worker(1.0, 1 << 30).wait_until_ready()
    with GradingPool(1) as pool:
        pool.submit("a", r"\boxed{2^{x+1}}", "2^{1+x}")
        with pytest.raises(GradingError, match="did not start"):
            pool.poll(block=True)


# --- A user's own verifier ---

VERIFIERS = """
import os, subprocess, sys, time

def is_half(prediction, gold):
    print("noise on stdout")
    return float(prediction) == float(gold) / 2

def act(prediction, gold):
    if prediction == "input":
        return input() == gold
    if prediction == "exit":
        sys.exit(3)
    if prediction == "two":
        return 2
    if prediction == "soft":
        return 0.75, "almost"
    if prediction == "softer":
        return 0.25
    if prediction == "grade":
        return "wrong", "by its own words"
    if prediction == "hang":
        while True: pass
    if prediction == "sleep":
        time.sleep(600)
    if prediction == "memory":
        return len(bytearray(4 << 30)) > 0
    if prediction == "die":
        os._exit(0)
    if prediction == "child":
        with open(gold, "w") as file:
            file.write(str(subprocess.Popen(["sleep", "600"]).pid))
    return True

no_function = 5
"""


@pytest.fixture
def verifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of verifiers that only the worker processes can import."""
    (tmp_path / "own_checks.py").write_text(VERIFIERS, encoding="utf-8")
    (tmp_path / "broken_checks.py").write_text("raise RuntimeError('two\\nlines')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "own_checks"


def test_a_verifier_decides_and_its_errors_are_data(verifiers: str) -> None:
    with GradingPool(1, grader=f"{verifiers}:is_half") as pool:
        cases = {"right": ("2.5", "5"), "wrong": ("5", "5"), "error": ("\ud800 five", "5")}
        expected = {"right": Grade.CORRECT, "wrong": Grade.WRONG, "error": Grade.UNPARSED}
        assert collect(pool, cases) == expected
        assert pool.num_processes == 1
    assert pool.num_processes == 0
    assert verifiers not in sys.modules


def test_a_verifier_may_give_a_part_of_the_reward_and_say_why_and_its_errors_are_told(
    verifiers: str, caplog: pytest.LogCaptureFixture
) -> None:
    with GradingPool(1, grader=f"{verifiers}:act") as pool:
        for name in ("soft", "softer", "grade", "exit", "two", "right"):
            pool.submit(name, name, "5")
        graded: dict[str, Graded] = {}
        while pool.num_in_flight:
            graded |= dict(pool.poll_answers(block=True))
    assert graded["soft"] == Graded(Grade.CORRECT, None, 0.75, "almost")
    assert graded["softer"] == Graded(Grade.WRONG, None, 0.25, "")
    assert graded["grade"] == Graded(Grade.WRONG, None, 0.0, "by its own words")
    assert graded["right"] == Graded(Grade.CORRECT, None, 1.0, "")
    assert graded["exit"] == Graded(Grade.UNPARSED, None, 0.0, "SystemExit: 3")
    assert graded["two"].reason.startswith("returned 2; expected a bool, a number from 0 to 1")
    assert "an answer is unparsed: SystemExit: 3" in caplog.text


@pytest.mark.slow
def test_a_verifier_runs_under_the_limits_and_is_replaced(verifiers: str) -> None:
    with GradingPool(1, deadline_s=0.5, memory_bytes=256 << 20, grader=f"{verifiers}:act") as pool:
        cases = {
            name: (name, "5") for name in ("fine", "input", "exit", "two", "hang", "sleep", "memory", "die", "end")
        }
        grades = collect(pool, cases)
        assert pool.num_processes == 1
    assert pool.num_processes == 0
    bad = dict.fromkeys(("input", "exit", "two"), Grade.UNPARSED)
    ended = dict.fromkeys(("hang", "sleep", "memory", "die"), Grade.TIMEOUT)
    assert grades == {"fine": Grade.CORRECT, "end": Grade.CORRECT, **bad, **ended}


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups here")
def test_what_a_verifier_started_ends_with_its_worker(verifiers: str, tmp_path: Path) -> None:
    with GradingPool(1, grader=f"{verifiers}:act") as pool:
        assert collect(pool, {"a": ("child", str(tmp_path / "pid"))}) == {"a": Grade.CORRECT}
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
    until = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie that nobody has collected yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        ("no_such_module:verify", "grader=no_such_module:verify: .*No module named 'no_such_module'"),
        ("own_checks:nothing", "grader=own_checks:nothing: .*own_checks has no function nothing"),
        ("own_checks:no_function", "own_checks has no function no_function"),
        ("broken_checks:verify", "RuntimeError: two lines$"),
        ("own_checks", "expected math or my_package.my_module:verify"),
    ],
)
def test_a_verifier_that_cannot_be_loaded_is_one_clear_line(verifiers: str, grader: str, message: str) -> None:
    with pytest.raises(GradingError, match=message) as caught:
        GradingPool(1, grader=grader)
    assert "\n" not in str(caught.value)
