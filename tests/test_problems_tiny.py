from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from pipeline_lib.config import ConfigError
from pipeline_lib.problems.tiny import algebra, make_problem, make_worked_problem, steps_are_right
from pipeline_lib.problems.tiny.arithmetic import (
    MISCONCEPTIONS,
    arithmetic_with_misconceptions,
    compute,
    smaller_from_larger,
)
from pipeline_lib.problems.tiny.corpus import pretraining_corpus
from pipeline_lib.problems.tiny.world import FAMILIES, SPLITS, write_solution
from pipeline_lib.seeding import derive_generator
from pipeline_lib.types import SearchTree

NEVER = dict.fromkeys((habit.name for habit in MISCONCEPTIONS), 0.0)
ALWAYS = dict.fromkeys(NEVER, 1.0)


def test_smaller_from_larger_takes_each_digit_apart():
    assert smaller_from_larger(52, 37) == 25
    assert smaller_from_larger(100, 1) == 101


@pytest.mark.parametrize(
    ("operator", "left", "right", "wrong"),
    [("-", 52, 37, 25), ("*", 9, 4, 32), ("/", 90, 9, 11), ("move", 50, 20, 70), ("^", 7, 2, 14)],
)
def test_a_habit_always_yields_the_same_wrong_value(operator, left, right, wrong):
    operation = arithmetic_with_misconceptions(derive_generator(0), ALWAYS)
    assert operation(operator, left, right) == wrong
    assert compute(operator, left, right) != wrong


def test_habits_strike_only_their_own_operands():
    operation = arithmetic_with_misconceptions(derive_generator(0), ALWAYS)
    right = sum(operation("-", 57, 32) == 25 for _ in range(200))
    assert 190 <= right < 200  # what is left are slips, 2 %


@pytest.mark.parametrize("dataset", FAMILIES)
def test_a_problem_is_its_id(dataset):
    first = make_problem(dataset, "train", 17)
    make_worked_problem.cache_clear()
    assert make_problem(dataset, "train", 17) == first
    assert first.problem_id == f"{dataset}/train/00017"


@pytest.mark.parametrize("dataset", FAMILIES)
def test_splits_share_no_question(dataset):
    questions = {split: {make_problem(dataset, split, i).question for i in range(300)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not questions[one] & questions[other]


def test_sympy_finds_every_algebra_answer_by_another_way():
    kinds = set()
    for index in range(250):
        worked = make_worked_problem("tiny-algebra", "test", index)
        kinds.add(worked.structure.kind)
        assert algebra.sympy_answer(worked.structure) == worked.problem.answer
    assert kinds == set(algebra._SOLVERS)


def test_word_solutions_have_two_to_five_steps_and_end_in_the_answer():
    for index in range(200):
        worked = make_worked_problem("tiny-word", "train", index)
        assert 2 <= len(worked.lines) - 1 <= 5
        assert worked.lines[-1] == f"#### {worked.problem.answer}"


def test_scale_makes_numbers_larger():
    largest = [max(int(make_problem(f"tiny-word@{scale}", "train", i).answer) for i in range(50)) for scale in (1, 2)]
    assert largest[0] < 100 < largest[1]


@pytest.mark.parametrize(
    ("dataset", "split"), [("tiny-verse", "train"), ("tiny-word@0", "train"), ("tiny-word", "dev")]
)
def test_unknown_worlds_are_refused_in_one_line(dataset, split):
    with pytest.raises(ConfigError, match="expected"):
        make_problem(dataset, split, 0)


def test_without_habits_the_corpus_is_right_but_for_slips():
    worked = make_worked_problem("tiny-word", "pretrain", 3)
    solutions = {
        write_solution(worked, arithmetic_with_misconceptions(derive_generator(seed), NEVER)) for seed in range(20)
    }
    assert "\n".join(worked.lines) in solutions


def test_corpus_pair_depends_on_its_number_alone():
    whole = list(itertools.islice(pretraining_corpus(0), 12))
    assert list(itertools.islice(pretraining_corpus(0, start=8), 4)) == whole[8:]


def _chain(problem_id: str, steps: list[str]) -> SearchTree:
    n = len(steps) + 1
    return SearchTree(
        problem_id=problem_id,
        policy_id="p",
        seed=0,
        prompt_token_ids=np.zeros(1, np.int32),
        parents=np.arange(-1, n - 1, dtype=np.int32),
        steps=("", *steps),
        token_ids=tuple(np.zeros(0, np.int32) for _ in range(n)),
        visits=np.ones(n, np.int32),
        value_sums=np.zeros(n),
        outcomes=np.zeros(n, np.int8),
        depths=np.arange(n, dtype=np.int32),
    )


@pytest.mark.parametrize("dataset", FAMILIES)
def test_the_oracle_accepts_the_worked_solution_and_finds_each_spoilt_step(dataset):
    for index in range(60):
        worked = make_worked_problem(dataset, "train", index)
        problem_id = worked.problem.problem_id
        lines = [line + "\n" for line in worked.lines]
        assert steps_are_right(_chain(problem_id, lines)).all()
        for place in range(len(lines)):
            spoilt = [*lines]
            digit = max(i for i, c in enumerate(spoilt[place]) if c.isdigit())
            spoilt[place] = (
                spoilt[place][:digit] + str((int(spoilt[place][digit]) + 1) % 10) + spoilt[place][digit + 1 :]
            )
            assert np.flatnonzero(~steps_are_right(_chain(problem_id, spoilt))).tolist() == [place + 1]


def test_the_oracle_ignores_wording_and_order_of_operands():
    worked = next(
        w
        for i in range(99)
        if "+" in (w := make_worked_problem("tiny-word", "train", i)).lines[0] and "That" not in w.lines[0]
    )
    name, _, equation = worked.lines[0].split()[:3]
    left, value = equation.split("=")
    a, b = left.split("+")
    path = [f"So now {name} owns {b}+{a}={value} of them."]
    assert steps_are_right(_chain(worked.problem.problem_id, path)).all()


def test_no_answer_of_everyday_problems_stands_out_so_far_that_it_would_be_guessed():
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(1500):
        problem = make_problem("tiny-arithmetic", "train", index)
        answers[problem.metadata["operations"]][problem.answer] += 1
    shares = {kind: max(found.values()) / found.total() for kind, found in answers.items()}
    assert shares.pop("/") < 0.15  # a twelfth each, but for chance
    assert len(shares) == 7
    assert max(shares.values()) < 0.1


def test_everyday_numbers_keep_to_the_bounds_of_their_scale():
    for index in range(1000):
        structure = make_worked_problem("tiny-arithmetic", "train", index).structure
        if structure.kind[0] in "+-":
            assert max(structure.numbers) <= 60
        assert min(structure.numbers) >= 2
