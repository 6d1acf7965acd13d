"""Grading: how many answers a second, how long the slowest take, and whether the engine waits for them.

One idea: nothing is measured twice on the same workers, which remember verdicts, and sympy with them. Every
turn has new processes, which are started and warmed on answers that are not measured.

1. ``plain``: Math-Verify's own ``parse`` and ``verify``, one after the other in one process, its time limits
   off. It runs in a worker too, so that what hangs it can be killed and left out, and every turn starts afresh.
2. ``ungraded``: the same search with a grader that looks the grades up.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.measuring import Cost, Figure, clock_for, in_turns, measure, paired_speedup, speedup

from pipeline_lib.config import SearchConfig
from pipeline_lib.grading import Grade, GradingPool, grade
from pipeline_lib.grading.grader import Grader
from pipeline_lib.policy.protocol import Policy
from pipeline_lib.search import search_trees
from pipeline_lib.types import Problem

TESTS = Path(__file__).resolve().parents[1]
CORPUS = TESTS / "golden" / "grading_corpus.jsonl"
NUM_WORKERS = 2
NUM_PLAIN_NUMBERS = 8000
PLAIN = "benchmarks.grading:plain_verify"
_LATEX = re.compile(r"[\\^{]")
_WARMING = (
    "a+b",
    r"\frac{a}{7}",
    r"a\sqrt{7}",
    "(7,a)",
    r"\{7,a\}",
    "[7,a)",
    "a=7b",
    r"\begin{pmatrix}7\\a\end{pmatrix}",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to grade, and its grade."""

    prediction: str
    gold: str
    grade: str


def read_corpus(path: Path = CORPUS) -> list[Case]:
    """The rows of the golden corpus that are graded by the default conventions."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    cases = [Case(row["prediction"], row["gold"], row["grade"]) for row in rows if "conventions" not in row]
    return list(dict.fromkeys(cases))


def plain_numbers(count: int) -> list[Case]:
    """Distinct answers as a model writes them to GSM8K's questions: some wrong, some without an answer."""
    draw = random.Random(0)
    cases = []
    for index in range(count):
        price, number = draw.randint(2, 90), draw.randint(100, 9000)
        total = price * number
        text = f"Each of the {number} boxes costs ${price}.\nSo they cost {number}*{price}=<<{number}*{price}={total}>>"
        shown = draw.choice([f"{total}", f"{total:,}", f"${total}", f"{total}.00", f"{total + 1}", f"{total} dollars"])
        end = "" if index % 20 == 0 else f"\n#### {shown}"
        grade = Grade.UNPARSED if index % 20 == 0 else Grade.WRONG if shown == f"{total + 1}" else Grade.CORRECT
        cases.append(Case(f"{text}{total} dollars.{end}", str(total), grade))
    return cases


def with_other_digits(cases: Sequence[Case], num_variants: int = 3) -> list[Case]:
    """The cases, and each again with its digits exchanged: as many texts as a search sees, of as many kinds.

    The grades of the variants are unknown; some that were equal no longer are.
    """
    draw = random.Random(0)
    varied = list(cases)
    for _ in range(num_variants):
        digits = str.maketrans("23456789", "".join(draw.sample("23456789", 8)))
        varied += [Case(c.prediction.translate(digits), c.gold.translate(digits), "") for c in cases]
    return list(dict.fromkeys(varied))


def grading_figures(cases: Sequence[Case], *, num_numbers: int = NUM_PLAIN_NUMBERS, rounds: int = 3) -> list[Figure]:
    """The figures of the room ``grading``.

    Args:
        cases: the corpus.
        num_numbers: answers in GSM8K's style.
        rounds: turns per figure; the best one counts.
    """
    numbers, latex = plain_numbers(num_numbers), with_other_digits([c for c in cases if _LATEX.search(c.gold)])
    figures = [
        _rate("grading.gsm8k_per_s", numbers, 2000.0, rounds, in_workers=False),
        _rate("grading.latex_per_s", latex, 400.0, rounds, in_workers=True),
    ]
    tails = [np.quantile(_latencies(cases), [0.5, 0.99, 1.0]).tolist() for _ in range(rounds)]
    best = min(tails, key=lambda tail: tail[1])
    details: dict[str, object] = {"answers": len(cases), "median_s": round(best[0], 5), "slowest_s": round(best[2], 4)}
    figures.append(Figure("grading.p99_s", best[1], 0.1, at_least=False, details=details))
    return [*figures, _speedup_vs_math_verify(cases, rounds)]


def ungraded_figure(policy: Policy, problems: Sequence[Problem], config: SearchConfig, *, rounds: int = 9) -> Figure:
    """The search's throughput with a pool over that with recorded grades: the median over `rounds` pairs.

    Args:
        policy: nothing in flight.
        problems: of one dataset.
        config: of the search.
        rounds: turns per side; all draw the same rollouts.
    """
    recorded = RecordedGrader()

    def search(grader: Grader) -> float:
        before = policy.stats.tokens_generated
        search_trees(problems, policy, grader, config, seed=0, on_tree=lambda _: None)
        return float(policy.stats.tokens_generated - before)

    def graded(turn: int) -> float:
        with GradingPool(NUM_WORKERS) as pool:
            return search(pool)

    search(recorded)
    works = {"graded": graded, "ungraded": lambda turn: search(recorded)}
    costs = in_turns(works, rounds=rounds, alternating=True)
    name, labels = "search.throughput_vs_ungraded", ("graded_tokens", "ungraded_tokens")
    clock = clock_for([cost for each in costs.values() for cost in each])  # these answers are graded where they come
    figure = paired_speedup(name, costs["graded"], costs["ungraded"], clock=clock, target=0.97, labels=labels)
    figure.details.update(problems=len(problems), distinct_answers=len(recorded.grades))
    return figure


class RecordedGrader(Grader):
    """Looks grades up, which costs next to nothing; grades at once what it has not seen."""

    def __init__(self) -> None:
        self.grades: dict[tuple[str, str], Grade] = {}
        self._finished: list[tuple[str, Grade]] = []

    @property
    def num_in_flight(self) -> int:
        return len(self._finished)

    def submit(self, key: str, prediction: str, gold: str) -> None:
        if (prediction, gold) not in self.grades:
            self.grades[prediction, gold] = grade(prediction, gold)
        self._finished.append((key, self.grades[prediction, gold]))

    def poll(self, *, block: bool) -> list[tuple[str, Grade]]:
        finished, self._finished = self._finished, []
        return finished


def plain_verify(prediction: str, gold: str) -> bool:
    """Math-Verify as its documentation has it, the gold in dollars, without time limits."""
    from math_verify import parse, verify

    delimited = gold if "$" in gold or "\\boxed" in gold or "####" in gold else f"${gold}$"
    golds, answers = parse(delimited, parsing_timeout=None), parse(prediction, parsing_timeout=None)
    return bool(verify(golds, answers, timeout_seconds=None))


def _rate(name: str, cases: Sequence[Case], target: float, rounds: int, *, in_workers: bool) -> Figure:
    costs = [_graded_at_once(cases) for _ in range(rounds)]
    clock = "wall" if in_workers else clock_for(costs)  # what needs no worker never waits
    rates = [cost.rate(clock) for cost in costs]
    details: dict[str, object] = {"answers": len(cases), "turns_per_s": [round(rate, 1) for rate in rates]}
    return Figure(name, max(rates), target, details={**details, "clock": clock, "workers": NUM_WORKERS})


def _speedup_vs_math_verify(cases: Sequence[Case], rounds: int) -> Figure:
    with importable_by_workers(), GradingPool(NUM_WORKERS, grader=PLAIN) as pool:
        verdicts = _grade(pool, cases)
    finite = [case for case, verdict in zip(cases, verdicts, strict=True) if verdict is not Grade.TIMEOUT]
    ours, alone, plain = [], [], []
    for _ in range(rounds):
        ours.append(_graded_at_once(finite))
        alone.append(_graded_at_once(finite, num_workers=1))
        with importable_by_workers():
            plain.append(_graded_at_once(finite, num_workers=1, grader=PLAIN))
    figure = speedup(
        "grading.speedup_vs_math_verify", ours, plain, clock="wall", target=1.5, labels=("pool", "math_verify")
    )
    del figure.details["cpu_ratios"]  # the workers' processor time is not this process's
    right = sum(verdict == case.grade for case, verdict in zip(cases, verdicts, strict=True))
    figure.details.update(
        pool_of_one_per_s=round(max(cost.rate("wall") for cost in alone), 2),
        answers=len(finite),
        math_verify_hangs_on=len(cases) - len(finite),
        math_verify_right_share=round(right / len(cases), 4),
        workers=NUM_WORKERS,
    )
    return figure


@contextmanager
def importable_by_workers() -> Iterator[None]:
    """In it, worker processes find this folder's verifiers."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TESTS), before]))
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _graded_at_once(cases: Sequence[Case], *, num_workers: int = NUM_WORKERS, grader: str = "math") -> Cost:
    with GradingPool(num_workers, grader=grader) as pool:
        _warm_up(pool)
        return measure(lambda: float(len(_grade(pool, cases))))


def _grade(pool: GradingPool, cases: Sequence[Case]) -> list[Grade]:
    for index, case in enumerate(cases):
        pool.submit(str(index), case.prediction, case.gold)
    grades: dict[str, Grade] = {}
    while pool.num_in_flight:
        grades.update(pool.poll(block=True))
    return [grades[str(index)] for index in range(len(cases))]


def _latencies(cases: Sequence[Case]) -> list[float]:
    """Seconds from submission to grade, with one answer in flight per worker."""
    latencies, started = [], {}
    with GradingPool(NUM_WORKERS) as pool:
        _warm_up(pool)
        waiting = list(enumerate(cases))[::-1]
        while waiting or pool.num_in_flight:
            while waiting and pool.num_in_flight < NUM_WORKERS:
                index, case = waiting.pop()
                started[str(index)] = time.perf_counter()
                pool.submit(str(index), case.prediction, case.gold)
            latencies += [time.perf_counter() - started[key] for key, _ in pool.poll(block=True)]
    return latencies


def _warm_up(pool: GradingPool) -> None:
    """Starts all workers; two answers at once, since a single one would start one worker only."""
    _grade(pool, [Case(rf"\boxed{{{form.replace('7', '9')}}}", form, "") for form in _WARMING * 2])
