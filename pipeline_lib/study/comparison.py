"""Means over seeds with their intervals, differences seed by seed, and the choice among a method's tries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from pipeline_lib.study.cell_result import CellResult

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean over seeds.

    Args:
        mean: of the values.
        half: half the width of its 95 % interval; nan with fewer than two seeds.
        num_seeds: how many values.
    """

    mean: float
    half: float
    num_seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.mean - self.half, self.mean + self.half


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of values that are independent draws, with Student's 95 % interval.

    Source: Student 1908, through scipy.

    Example: of ``(0.70, 0.74, 0.78)`` the mean is 0.74 and the half width 0.099.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("there is no value to take a mean of")
    data, count = np.asarray(values, dtype=np.float64), len(values)
    if count < 2:
        return Estimate(float(data.mean()), math.nan, count)
    from scipy.stats import t

    error = float(data.std(ddof=1)) / math.sqrt(count)
    return Estimate(float(data.mean()), float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error, count)


def paired_differences(
    results: Iterable[CellResult], method: str, reference: str, family: str, dataset: str
) -> list[float]:
    """Accuracy of `method` less that of `reference` on a test set, seed by seed, of the policies validation chose.

    Args:
        results: one for each method, family and seed.
        method: what is compared.
        reference: what it is compared with.
        family: dataset that both were trained on.
        dataset: test set.
    """
    by_seed: dict[str, dict[int, float]] = {method: {}, reference: {}}
    for result in results:
        if result.family == family and result.method in by_seed:
            by_seed[result.method][result.seed] = result.best.accuracy[dataset]
    common = sorted(by_seed[method].keys() & by_seed[reference].keys())
    return [by_seed[method][seed] - by_seed[reference][seed] for seed in common]


def choose_tries(trials: Sequence[CellResult]) -> dict[tuple[str, str], int]:
    """By method and family the try whose champions validate best, the earliest of equals; no test set is looked at.

    Args:
        trials: one for each method, family, try and seed; seeds count alike.
    """
    validated: dict[tuple[str, str], dict[int, list[float]]] = {}
    for trial in trials:
        tries = validated.setdefault((trial.method, trial.family), {})
        tries.setdefault(trial.attempt, []).append(-1.0 if trial.best.validation is None else trial.best.validation)
    return {place: max(tries, key=lambda attempt: fmean(tries[attempt])) for place, tries in validated.items()}
