"""The audit: do an iteration's scores carry signal? Asked before any training.

If scores have next to no variance, weighted training degenerates quietly; so it must be refused loudly, with the
reason and what to change. In the tiny world an oracle also tells how well low scores find wrong steps, which no
real dataset can show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.config import AuditConfig, Cutoff
from pipeline_lib.config.truncation import count_cutoffs, dial_to_raise
from pipeline_lib.types import ROOT, AuditReport, Float64Array, Histogram, Outcome, Remedy, SearchTree

VISIT_BUCKETS = {"1": (1, 1), "2-3": (2, 3), "4-7": (4, 7), "8+": (8, np.iinfo(np.int32).max)}
MOSTLY = 0.5  # of the rollouts; where more than these cannot be graded, that is why problems are uninformative
Oracle = Callable[[SearchTree], NDArray[np.bool_]]


def audit_scores(
    trees: Sequence[SearchTree],
    scores: Sequence[Float64Array],
    config: AuditConfig,
    *,
    earlier: Sequence[SearchTree] = (),
    step_is_right: Oracle | None = None,
) -> AuditReport:
    """Everything that tells whether an iteration's scores are worth training on.

    Args:
        trees: all that the iteration searched, at least one.
        scores: `[N]` float64 for each tree, in the trees' order.
        config: the thresholds, and the histogram's bins.
        earlier: the same problems' trees before the uninformative ones were searched again; none where none was.
        step_is_right: the oracle, `[N]` bool for a tree; only the tiny world has one.

    Raises:
        ValueError: no tree, or scores that do not fit.
    """
    if not trees or len(trees) != len(scores):
        raise ValueError(f"audit: {len(trees)} trees and {len(scores)} score arrays; give one array per tree")
    for tree, score in zip(trees, scores, strict=True):
        if len(score) != tree.num_nodes or not np.isfinite(score).all():
            raise ValueError(f"audit: {tree.problem_id} needs {tree.num_nodes} finite scores; score its tree again")
    steps = _Steps.gather(trees, scores)
    counts = _count_problems(trees)
    rollouts = _count_rollouts(trees)
    num_rollouts = max(sum(rollouts.values()), 1)
    shares = {
        "unparsed_share": (rollouts["unparsed"] + rollouts["timeout"]) / num_rollouts,
        "truncated_share": rollouts["truncated"] / num_rollouts,
    }
    cut_unparsed = sum(_ended(tree, Outcome.UNPARSED, cut=True) for tree in trees)
    shares["cut_share"] = (rollouts["truncated"] + cut_unparsed) / num_rollouts
    cutoffs = count_cut_rollouts(trees)
    variance = float(steps.scores.var()) if len(steps.scores) else 0.0
    remedy = _remedy(earlier, trees) if earlier else None
    reason, advice = _verdict(counts, shares, cutoffs, variance, config, remedy)
    return AuditReport(
        **counts,
        informative_share=counts["num_informative"] / counts["num_problems"],
        unparsed_share=shares["unparsed_share"],
        truncated_share=shares["truncated_share"],
        rollouts=rollouts,
        cutoffs=cutoffs,
        num_steps=len(steps.scores),
        num_scored_steps=int(np.count_nonzero(steps.scores)),
        variance=variance,
        variance_by_depth={
            int(depth): float(steps.scores[steps.depths == depth].var()) for depth in np.unique(steps.depths)
        },
        variance_by_visits={
            bucket: float(steps.scores[mask].var()) for bucket, mask in _by_visits(steps.visits) if mask.any()
        },
        positive_mass=float(steps.scores[steps.scores > 0].sum()),
        negative_mass=float(steps.scores[steps.scores < 0].sum()),
        histogram=_histogram(steps.scores, config.histogram_bins),
        remedied=remedy is not None,
        remedy=remedy,
        passed=not advice,
        reason=reason,
        advice=advice,
        oracle={} if step_is_right is None else _oracle_auc(steps, trees, step_is_right),
    )


def remedy_may_help(report: AuditReport, config: AuditConfig) -> bool:
    """Whether to search the uninformative problems on, once, before an audit that did not pass stops the iteration.

    More simulations make no answer gradable and no informative problem more so: not where most rollouts are unparsed
    or truncated, nor where the scores hardly vary though every problem is informative.

    Args:
        report: the audit's.
        config: the thresholds that it was made with, and whether the remedy is wanted.
    """
    all_informative = report.num_informative == report.num_problems
    if report.passed or report.remedied or not config.remedy or all_informative:
        return False
    unusable = report.unparsed_share + report.truncated_share
    lacks_informative = report.informative_share < config.min_informative_share or not report.num_informative
    return unusable <= config.max_unusable_share and not (lacks_informative and unusable > MOSTLY)


class _Steps:
    """All steps of all trees, roots left out; S of them."""

    def __init__(self, scores: Float64Array, depths: NDArray[np.int32], visits: NDArray[np.int32]) -> None:
        self.scores, self.depths, self.visits = scores, depths, visits

    @classmethod
    def gather(cls, trees: Sequence[SearchTree], scores: Sequence[Float64Array]) -> _Steps:
        return cls(
            np.concatenate([score[1:] for score in scores]),
            np.concatenate([tree.depths[1:] for tree in trees]),
            np.concatenate([tree.visits[1:] for tree in trees]),
        )


def _count_problems(trees: Sequence[SearchTree]) -> dict[str, int]:
    informative = sum(tree.is_informative for tree in trees)
    uncounted = _num_uncounted(trees)
    wrong = sum(float(tree.value_sums[ROOT]) == 0 for tree in trees) - uncounted
    return {
        "num_problems": len(trees),
        "num_informative": informative,
        "num_all_correct": len(trees) - informative - wrong - uncounted,
        "num_all_wrong": wrong,
    }


def _num_uncounted(trees: Sequence[SearchTree]) -> int:
    """Problems whose rollouts were all ignored: they are neither right nor wrong."""
    return sum(not tree.visits[ROOT] for tree in trees)


def _count_rollouts(trees: Sequence[SearchTree]) -> dict[str, int]:
    ended = {outcome: sum(_ended(tree, outcome) for tree in trees) for outcome in Outcome}
    timeouts = sum(tree.num_timeouts for tree in trees)
    return {
        "correct": ended[Outcome.CORRECT],
        "wrong": ended[Outcome.WRONG],
        "unparsed": ended[Outcome.UNPARSED] - timeouts,
        "timeout": timeouts,
        "truncated": ended[Outcome.TRUNCATED] + sum(_failed(tree) + sum(tree.ignored) for tree in trees),
    }


def count_cut_rollouts(trees: Sequence[SearchTree]) -> dict[str, int]:
    """Rollouts that each limit cut off, by its name, whatever they then counted as; without those of version 0.1.0."""
    numbers = np.zeros(len(Cutoff), dtype=np.int64)
    for tree in trees:
        is_end = tree.outcomes != Outcome.OPEN
        numbers += np.bincount(tree.cutoffs[is_end], weights=tree.visits[is_end], minlength=len(Cutoff)).astype(int)
        numbers[: len(tree.ignored)] += np.array(tree.ignored, dtype=np.int64)
    return count_cutoffs(numbers.tolist())


def _ended(tree: SearchTree, outcome: Outcome, *, cut: bool = False) -> int:
    """Rollouts of a tree that ended so: an ending node is a leaf, its visits are its rollouts; `cut`: by a limit."""
    return int(tree.visits[(tree.outcomes == outcome) & ((tree.cutoffs != Cutoff.NONE) | (not cut))].sum())


def _failed(tree: SearchTree) -> int:
    """Rollouts of version 0.1.0 that the engine failed to begin: visits of an open node and of no child of it."""
    below = np.bincount(tree.parents[1:], weights=tree.visits[1:], minlength=tree.num_nodes)
    return int((tree.visits - below)[tree.outcomes == Outcome.OPEN].sum())


def _verdict(
    counts: dict[str, int],
    shares: dict[str, float],
    cutoffs: dict[str, int],
    variance: float,
    config: AuditConfig,
    remedy: Remedy | None,
) -> tuple[str, str]:
    """The reason, and advice that is empty when the audit passes."""
    n, informative = counts["num_problems"], counts["num_informative"]
    share = informative / n
    again = f" even after {_what_it_did(remedy)}" if remedy else ""
    unusable = shares["unparsed_share"] + shares["truncated_share"]
    if unusable > config.max_unusable_share:
        limit = f"at most {config.max_unusable_share:.1%}"
        reason = f"{unusable:.1%} of the rollouts have no answer that can be graded ({limit})"
        found = f"{informative} of {n} problems are informative" if informative else "nothing informative"
        return f"{reason}: {found}{again}", _advice_unusable(shares, cutoffs)
    if share < config.min_informative_share or not informative:
        wrong, right = counts["num_all_wrong"], counts["num_all_correct"]
        reason = (
            f"nothing informative{again}: {informative} of {n} problems ({share:.1%}, at least "
            f"{config.min_informative_share:.1%}) have right and wrong rollouts; {wrong} are all wrong, "
            f"{right} all right"
        )
        if uncounted := n - informative - wrong - right:
            reason += f", {uncounted} without a rollout that counts"
        return reason, _advice_uninformative(counts, shares, cutoffs)
    if variance < config.min_variance or variance == 0:
        reason = f"the scores' variance is {variance:.2g} (at least {config.min_variance:.2g}){again}"
        return reason, "raise search.num_simulations, lower score.min_visits, or search harder problems"
    passed = f"{share:.1%} of {n} problems are informative and the scores' variance is {variance:.3g}"
    return passed + (f"; {_what_it_did(remedy)}" if remedy else ""), ""


def _advice_unusable(shares: dict[str, float], cutoffs: dict[str, int]) -> str:
    if shares["cut_share"] > (shares["unparsed_share"] + shares["truncated_share"]) / 2:
        return f"raise {dial_to_raise(cutoffs)}, or take a model that ends its answers"
    return "check policy.instruction against the dataset's answer format, or take a model that follows it"


def _advice_uninformative(counts: dict[str, int], shares: dict[str, float], cutoffs: dict[str, int]) -> str:
    if shares["unparsed_share"] + shares["truncated_share"] > MOSTLY:
        return _advice_unusable(shares, cutoffs)
    if counts["num_all_wrong"] >= counts["num_all_correct"]:
        return "take easier problems or a stronger policy.model, or raise search.num_simulations"
    return "take harder problems: the policy solves these every time"


def _remedy(earlier: Sequence[SearchTree], trees: Sequence[SearchTree]) -> Remedy:
    """What searching the uninformative ones of `earlier` again did; `trees` holds the same problems in their order."""
    again = [(before, after) for before, after in zip(earlier, trees, strict=True) if not before.is_informative]
    return Remedy(
        num_problems=len(again),
        num_rollouts=sum(after.num_rollouts - before.num_rollouts for before, after in again),
        num_informative=sum(after.is_informative for _, after in again),
    )


def _what_it_did(remedy: Remedy) -> str:
    problems = "1 problem was" if remedy.num_problems == 1 else f"{remedy.num_problems} problems were"
    rollouts = "1 new rollout" if remedy.num_rollouts == 1 else f"{remedy.num_rollouts} new rollouts"
    return f"{problems} searched again with {rollouts} and {remedy.num_informative} became informative"


def _by_visits(visits: NDArray[np.int32]) -> list[tuple[str, NDArray[np.bool_]]]:
    return [(name, (visits >= low) & (visits <= high)) for name, (low, high) in VISIT_BUCKETS.items()]


def _histogram(scores: Float64Array, bins: int) -> Histogram:
    """Symmetric about 0, so that signs can be read off; an odd number of bins has one for 0."""
    reach = float(np.abs(scores).max()) if len(scores) and scores.any() else 1.0
    counts, edges = np.histogram(scores, bins=bins, range=(-reach, reach))
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _oracle_auc(steps: _Steps, trees: Sequence[SearchTree], step_is_right: Oracle) -> dict[str, float]:
    """AUC of low scores finding wrong steps among scored ones: overall, by depth, by visits."""
    right = np.concatenate([step_is_right(tree)[1:] for tree in trees])
    scored = steps.scores != 0
    masks = {"auc": scored}
    masks |= {f"auc/depth/{depth}": scored & (steps.depths == depth) for depth in np.unique(steps.depths).tolist()}
    masks |= {f"auc/visits/{bucket}": scored & mask for bucket, mask in _by_visits(steps.visits)}
    found = {name: auc(-steps.scores[mask], ~right[mask]) for name, mask in masks.items()}
    return {name: value for name, value in found.items() if value is not None}


def auc(statistic: Float64Array, positive: NDArray[np.bool_]) -> float | None:
    """Probability that a positive has the larger statistic, ties counting half; None with one class only.

    ``(R₁ − n₁ (n₁ + 1) / 2) / (n₁ n₀)``, R₁ the sum of the positives' ranks: the Mann-Whitney statistic as
    a share. Not by `mannwhitneyu`, whose exact p-value, unused here, takes seconds with few positives.

    Example: statistics (3, 1, 2), positives (True, False, False) give 1.
    """
    from scipy.stats import rankdata

    if not positive.any() or positive.all():
        return None
    n1, n0 = int(positive.sum()), int((~positive).sum())
    return float((rankdata(statistic)[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))
