"""Intervals and tests for accuracies.

One idea: two policies are compared on the same problems, so what counts is the problems on which
they differ; the rest is noise that a paired test leaves out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from pipeline_lib.types import PairedTest

CONFIDENCE = 0.95


def wilson_interval(num_correct: int, num_problems: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion, within [0, 1].

    Source: Wilson 1927, through statsmodels.

    Raises:
        ValueError: no problem, or more right than there are.
    """
    if not 0 <= num_correct <= num_problems or num_problems == 0:
        raise ValueError(f"{num_correct} of {num_problems} is no proportion")
    return _wilson(num_correct, num_problems)


def _wilson(num_correct: float, num_answers: float) -> tuple[float, float]:
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(num_correct, num_answers, alpha=1 - CONFIDENCE, method="wilson")
    # Rounding can put a limit of 0 or 1 an ulp inside, so that a perfect accuracy lies outside its own interval.
    return (0.0 if num_correct == 0 else float(low)), (1.0 if num_correct == num_answers else float(high))


def paired_test(
    before: Mapping[str, bool],
    after: Mapping[str, bool],
    *,
    dataset: str,
    split: str,
    against: str,
    against_iteration: int | None = None,
) -> PairedTest:
    """Two policies on the same problems: exact McNemar test, and the difference with its interval.

    Args:
        before: problem id to whether the earlier policy was right.
        after: problem id to whether the later policy was right.
        dataset: the dataset's name, for the result.
        split: the split's name, for the result.
        against: what the earlier policy is: ``base``, ``previous``, ``best`` or another iteration.
        against_iteration: index of the earlier policy's iteration, for the result.

    Raises:
        ValueError: they answered different problems.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if before.keys() != after.keys() or not before:
        raise ValueError(f"{dataset} {split}: the two policies answered different problems")
    cells = Counter((before[key], after[key]) for key in before)
    both, broken, fixed, neither = cells[True, True], cells[True, False], cells[False, True], cells[False, False]
    return PairedTest(
        dataset=dataset,
        split=split,
        against=against,
        against_iteration=against_iteration,
        num_fixed=fixed,
        num_broken=broken,
        difference=(fixed - broken) / len(before),
        interval=paired_difference_interval(both, fixed, broken, neither),
        p_value=float(mcnemar([[both, broken], [fixed, neither]], exact=True).pvalue),
    )


def paired_difference_interval(both: int, fixed: int, broken: int, neither: int) -> tuple[float, float]:
    """95 % interval of a difference of paired proportions, later minus earlier.

    Wilson limits of each proportion, squared and added, with their correlation φ: for the lower limit
    ``d − sqrt(δ₁² − 2 φ δ₁ δ₂ + δ₂²)``. Unlike the normal approximation it keeps its level with few
    discordant pairs. A positive φ is corrected for continuity: without that, two policies that agree on
    every problem and are right on half would get an interval without width.

    Source: Newcombe 1998, Statistics in Medicine 17:2635, method 10.

    Args:
        both: problems that both policies solved.
        fixed: problems that only the later policy solved.
        broken: problems that only the earlier policy solved.
        neither: problems that neither policy solved.

    Raises:
        ValueError: no pair.

    Example: no discordant pair gives an interval around 0 that shrinks as pairs are added.
    """
    total = both + fixed + broken + neither
    if total == 0:
        raise ValueError("no pair to compare")
    later, earlier = (both + fixed) / total, (both + broken) / total
    later_low, later_high = wilson_interval(both + fixed, total)
    earlier_low, earlier_high = wilson_interval(both + broken, total)
    product = (both + fixed) * (broken + neither) * (both + broken) * (fixed + neither)
    agreement = float(both * neither - fixed * broken)
    corrected = max(0.0, agreement - total / 2) if agreement > 0 else agreement
    phi = corrected / math.sqrt(product) if product else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    difference = later - earlier
    low = difference - reach(later - later_low, earlier_high - earlier)
    high = difference + reach(later_high - later, earlier - earlier_low)
    return max(-1.0, low), min(1.0, high)


def clustered_interval(means: Sequence[float], num_samples: int) -> tuple[float, float]:
    """95 % interval of the mean accuracy over problems that were each asked several times, within [0, 1].

    Samples of one problem resemble each other, so problems count, not samples. Wilson limits of as many answers as
    would have the standard error of the problems' means, ``p (1 − p) n / s²``: not fewer than the problems (each one's
    samples agree), not more than the samples (no problem is harder than another). Unlike a t interval it keeps its
    width where all problems agree; one sample per problem gives `wilson_interval`.

    Source: effective sample size after Korn and Graubard 1998 (Survey Methodology 24:193), there with exact limits;
    clusters by question after Miller 2024 (arXiv 2411.00640).

    Args:
        means: share of each problem's samples that were right, in [0, 1].
        num_samples: samples behind each of them, at least 1; the fewest where some have fewer.

    Raises:
        ValueError: no problem.

    Example: ten problems always right and ten never tell no more than 20 answers: ``wilson_interval(10, 20)``.
    """
    if not means:
        raise ValueError("no problem was sampled")
    total, mean = len(means), math.fsum(means) / len(means)
    variance = math.fsum((share - mean) ** 2 for share in means) / max(1, total - 1)
    effective = mean * (1 - mean) * total / variance if variance else math.inf
    effective = max(total, min(effective, total * num_samples)) if 0 < mean < 1 else total
    return _wilson(mean * effective, effective)


def majority_index(votes: Sequence[Hashable | None]) -> int | None:
    """Index of the first sample with the commonest vote; None when none voted.

    Ties go to the vote cast first.
    """
    cast = Counter(vote for vote in votes if vote is not None)
    return votes.index(cast.most_common(1)[0][0]) if cast else None


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k samples drawn from these is right.

    ``1 − C(n−c, k) / C(n, k)``: unbiased, unlike ``1 − (1 − c/n)^k``.

    Source: Chen et al. 2021 (arXiv 2107.03374).

    Raises:
        ValueError: unless ``0 <= num_correct <= num_samples`` and ``1 <= k <= num_samples``.

    Example: 2 right of 4, k 2: ``1 − 1/6``.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"pass@{k} of {num_correct} right in {num_samples} samples is not defined")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
