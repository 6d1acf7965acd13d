import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.evaluation import (
    clustered_interval,
    majority_index,
    paired_difference_interval,
    paired_test,
    pass_at_k,
    wilson_interval,
)
from pipeline_lib.evaluation.votes import winning_samples
from pipeline_lib.grading import GradingPool, extract_answer
from pipeline_lib.types import Grade

COUNTS = st.integers(0, 60)


def test_wilson_equals_published_numbers():
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_wilson_at_the_ends_is_z2_over_n_plus_z2():
    z2 = 1.959964**2
    assert wilson_interval(0, 20) == pytest.approx((0, z2 / (20 + z2)))
    assert wilson_interval(20, 20) == pytest.approx((20 / (20 + z2), 1))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_accuracy_and_stays_within_0_and_1(counts):
    low, high = wilson_interval(*counts)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


@pytest.mark.parametrize(("correct", "problems"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(correct, problems):
    with pytest.raises(ValueError, match=f"{correct} of {problems} is no proportion"):
        wilson_interval(correct, problems)


def answers(both=0, fixed=0, broken=0, neither=0):
    cells = [(True, True)] * both + [(False, True)] * fixed + [(True, False)] * broken + [(False, False)] * neither
    before, after = ({str(i): cell[side] for i, cell in enumerate(cells)} for side in (0, 1))
    return before, after


def paired(**cells):
    return paired_test(*answers(**cells), dataset="d", split="test", against="base")


def test_mcnemar_worked_by_hand():
    # 6 fixed, 1 broken: 2 (C(7, 0) + C(7, 1)) / 2^7 = 16 / 128.
    test = paired(both=10, fixed=6, broken=1, neither=3)
    assert (test.num_fixed, test.num_broken) == (6, 1)
    assert test.difference == pytest.approx(5 / 20)
    assert test.p_value == pytest.approx(0.125)
    assert (test.dataset, test.split, test.against) == ("d", "test", "base")


def test_problems_on_which_both_agree_do_not_change_the_p_value():
    assert paired(fixed=6, broken=1).p_value == paired(both=100, fixed=6, broken=1, neither=50).p_value


def test_equal_policies_differ_by_nothing_with_a_p_value_of_one_and_an_interval_with_width():
    test = paired(both=20, neither=20)
    assert (test.difference, test.p_value) == (0, 1)
    assert test.interval[0] < 0 < test.interval[1]


def test_a_paired_test_does_not_depend_on_the_order_of_problems():
    before, after = answers(both=3, fixed=2, broken=1, neither=4)
    shuffled = dict(reversed(after.items()))
    args = {"dataset": "d", "split": "test", "against": "base"}
    assert paired_test(before, shuffled, **args) == paired_test(before, after, **args)


@pytest.mark.parametrize(("before", "after"), [({}, {}), ({"a": True}, {"b": True}), ({"a": True}, {})])
def test_a_paired_test_refuses_different_problems(before, after):
    with pytest.raises(ValueError, match="d test: the two policies answered different problems"):
        paired_test(before, after, dataset="d", split="test", against="base")


def test_the_paired_interval_equals_numbers_worked_by_hand():
    # (20, 12, 2, 16): φ = (320 - 24 - 25) / sqrt(32 * 18 * 22 * 28) = 271 / 595.67 = 0.45495.
    # Wilson 32/50: 0.50141, 0.75862; 22/50: 0.31158, 0.57690. d = 0.2.
    down = math.sqrt(0.13859**2 - 2 * 0.45495 * 0.13859 * 0.13690 + 0.13690**2)
    up = math.sqrt(0.11862**2 - 2 * 0.45495 * 0.11862 * 0.12842 + 0.12842**2)
    assert paired_difference_interval(20, 12, 2, 16) == pytest.approx((0.2 - down, 0.2 + up), abs=2e-4)


def test_the_paired_interval_uses_no_correlation_where_it_is_not_defined():
    later, earlier = wilson_interval(48, 50), wilson_interval(38, 50)
    low, high = paired_difference_interval(36, 12, 2, 0)  # φ < 0 is not corrected: (0 - 24) / sqrt(48 * 2 * 38 * 12)
    assert low < 0.2 - math.hypot(0.96 - later[0], earlier[1] - 0.76)
    assert high > 0.2 + math.hypot(later[1] - 0.96, 0.76 - earlier[0])
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    low, high = paired_difference_interval(0, 0, 0, 20)
    assert (low, high) == pytest.approx((-wilson_interval(0, 20)[1], wilson_interval(0, 20)[1]))
    with pytest.raises(ValueError, match="no pair"):
        paired_difference_interval(0, 0, 0, 0)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_paired_interval_contains_the_difference_turns_with_it_and_shrinks(both, fixed, broken, neither):
    total = both + fixed + broken + neither
    if not total:
        return
    low, high = paired_difference_interval(both, fixed, broken, neither)
    assert -1 <= low <= (fixed - broken) / total <= high <= 1
    assert paired_difference_interval(both, broken, fixed, neither) == pytest.approx((-high, -low))
    tenfold = paired_difference_interval(10 * both, 10 * fixed, 10 * broken, 10 * neither)
    assert tenfold[1] - tenfold[0] < high - low


def test_the_majority_is_the_first_sample_with_the_commonest_answer():
    assert majority_index(["3", "4", "4"]) == 1
    assert majority_index(["3", "4", "4", "3"]) == 0  # ties go to the answer given first
    assert majority_index([None, None, "7"]) == 2  # no answer is no vote
    assert majority_index([None, None]) is None
    assert majority_index([]) is None


def vote(*texts, grader="math"):
    """Index of the sample that wins, by the real grader."""
    with GradingPool(1, grader=grader) as pool:
        [winner] = winning_samples([texts], [[extract_answer(text) for text in texts]], pool)
    return winner


def test_answers_that_the_grader_holds_equal_are_one_vote():
    assert vote("#### 3", r"So \boxed{0.5}", "#### 3", "#### 1/2", r"\boxed{\frac12}") == 1
    assert vote("#### 3", "#### 0.5", "#### 3.0", "#### 1/2") == 0  # a tie goes to what came first
    assert vote(r"\boxed{(1, 2)}", r"\boxed{2^{x+1}}", r"\boxed{2^{1+x}}") == 1  # algebra, in a worker
    assert vote("hm", "#### 7", "hm", "hm") == 1  # no answer is no vote
    assert vote("hm", "well") is None


def test_answers_are_compared_as_the_users_own_verifier_compares():
    assert vote("#### 1/2", "#### 3", "#### 0.5") == 0  # three answers, one vote each, for Coppice's grader two
    assert vote("#### 9", "#### 1/2", "#### 3", "#### 0.5") == 1
    assert vote("#### 9", "#### 1/2", "#### 3", "#### 0.5", grader="operator:eq") == 0


class CountingGrader:
    """Counts comparisons; nothing equals anything else."""

    def __init__(self):
        self.asked, self._ready = [], []

    @property
    def num_in_flight(self):
        return len(self._ready)

    def submit(self, key, prediction, gold):
        self.asked.append((prediction, gold))
        self._ready.append((key, Grade.WRONG))

    def poll(self, *, block):
        ready, self._ready = self._ready, []
        return ready


def test_a_vote_compares_each_pair_of_distinct_answers_at_most_once():
    grader, answers_ = CountingGrader(), ["1", "2", "1", "3", "2", "4"]
    assert winning_samples([[f"#### {a}" for a in answers_]] * 2, [answers_] * 2, grader) == [0, 0]
    assert len(grader.asked) == 2 * (4 * 3 // 2)
    assert set(grader.asked[:1]) == {("#### 2", "1")}  # the later one's text, the earlier one's answer as gold


def test_pass_at_k_worked_by_hand():
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(5, 0, 5) == 0
    assert pass_at_k(5, 1, 5) == 1


@pytest.mark.parametrize("arguments", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_what_is_not_defined(arguments):
    with pytest.raises(ValueError, match="is not defined"):
        pass_at_k(*arguments)


def test_one_sample_a_problem_gives_the_wilson_interval():
    assert clustered_interval([1.0] * 15 + [0.0] * 5, 1) == pytest.approx(wilson_interval(15, 20))


def test_the_interval_of_a_mean_counts_problems_and_not_samples():
    split = [1.0] * 10 + [0.0] * 10  # each problem's samples agree: 160 answers tell no more than 20
    assert clustered_interval(split, 8) == pytest.approx(wilson_interval(10, 20))
    spread = clustered_interval([0.5] * 20, 8)  # every problem alike: as good as 160 independent answers
    assert spread == pytest.approx(wilson_interval(80, 160))
    # By hand: means 0.25 and 0.75, p = 0.5, s² = 20 / 19 / 16, n_eff = 0.25 / (s² / 20) = 76, Wilson 38 of 76.
    assert clustered_interval([0.25] * 10 + [0.75] * 10, 8) == pytest.approx(wilson_interval(38, 76))


def test_the_interval_of_a_mean_has_width_where_all_agree():
    assert clustered_interval([1.0] * 20, 4) == pytest.approx(wilson_interval(20, 20))
    assert clustered_interval([0.0], 4) == pytest.approx(wilson_interval(0, 1))
    with pytest.raises(ValueError, match="no problem"):
        clustered_interval([], 4)


def test_the_interval_of_a_mean_holds_the_true_mean_in_95_of_100_draws():
    rng, inside, naive, draws = np.random.default_rng(0), 0, 0, 400
    for _ in range(draws):
        right = rng.binomial(8, rng.beta(0.6, 0.4, size=50))  # easy and hard problems; the true mean is 0.6
        low, high = clustered_interval((right / 8).tolist(), 8)
        inside += low <= 0.6 <= high
        low, high = wilson_interval(int(right.sum()), 400)
        naive += low <= 0.6 <= high
    assert 0.93 <= inside / draws <= 0.98
    assert naive / draws < 0.75  # what counting samples would have claimed to be 95 %
