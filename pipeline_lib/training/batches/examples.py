"""What each objective learns from a tree: a weight per step, or pairs of sibling steps.

One idea: a training example *is* a tree. Every distinct step occurs in it once, whichever of its
paths are trained on, so packing can compute each token once.

Departures from arXiv 2501.01478, where it is silent:

1. Negative scores are clipped from below, in units of the mean magnitude of the iteration's scores that are not
   0; a clip of 0 keeps positives only, none is the literal reading.
2. What is left becomes weights by division by its own mean magnitude. A weight that is not 0 then has magnitude 1 on
   average under every scaling and every clip, so one learning rate and one ``kl_beta`` serve all of them.
3. ``rft`` weighs each distinct step of right paths once, however many right paths share it.
   Rejection-sampling fine-tuning over separate samples would count a shared prefix once per sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline_lib.config import TrainConfig
from pipeline_lib.types import ROOT, Float64Array, Int32Array, Outcome, SearchTree, TrainingExample

MAX_EXPONENTIAL = 20.0  # of the weights that weighting=exp makes


def build_examples(
    trees: Sequence[SearchTree], scores: Sequence[Float64Array], config: TrainConfig
) -> list[TrainingExample]:
    """One example per tree that has something to train on, in the order of `trees`.

    Args:
        trees: the iteration's trees.
        scores: for each tree `[N]` float64 relative correctness; 0 means no signal. ``rft`` reads
            none of them; ``step-dpo`` takes a score of 0 for a step visited too seldom.
        config: objective, and what makes weights of scores.

    Raises:
        ValueError: scores do not fit the trees.
    """
    _check(trees, scores)
    if config.objective == "step-dpo":
        examples = _paired(trees, scores)
    else:
        weights = (
            [correct_path_weights(tree) for tree in trees]
            if config.objective == "rft"
            else with_values(
                relative_correctness_weights(transformed(scores, config), negative_clip=config.negative_clip),
                trees,
                config.value_weight,
            )
        )
        examples = (TrainingExample(tree, weight) for tree, weight in zip(trees, weights, strict=True))
    return [example for example in examples if example.weights.any() or len(example.pairs)]


def count_examples(trees: Sequence[SearchTree], examples: Sequence[TrainingExample]) -> dict[str, float]:
    """How much of the trees is trained on, as metrics: trees used and left out, steps, pairs, mass of the weights."""
    weights = np.concatenate([example.weights for example in examples]) if examples else np.zeros(0)
    return {
        "train/num_trees": float(len(examples)),
        "train/num_trees_left_out": float(len(trees) - len(examples)),
        "train/num_steps": float(np.count_nonzero(weights)),
        "train/num_pairs": float(sum(len(example.pairs) for example in examples)),
        "train/positive_mass": float(weights[weights > 0].sum()),
        "train/negative_mass": float(weights[weights < 0].sum()),
    }


def relative_correctness_weights(scores: Sequence[Float64Array], *, negative_clip: float | None) -> list[Float64Array]:
    """Scores as weights: ``max(score, -negative_clip * m)``, divided by the mean magnitude of those that are not 0.

    m is the mean magnitude of all scores that are not 0, before the clip.

    Source: our choice; see the module's departures 1 and 2.

    Args:
        scores: for each tree `[N]` float64.
        negative_clip: at least 0, in units of m; None clips nothing.

    Example: scores (2, -1, 0) and (-3) have m = 2. Clipped at 0.6 they are (2, -1, 0) and (-1.2), of mean magnitude
    1.4: the weights are (1.43, -0.71, 0) and (-0.86).
    """
    scale = mean_magnitude(scores)
    clipped = scores if negative_clip is None else [np.maximum(score, -negative_clip * scale) for score in scores]
    size = mean_magnitude(clipped)
    return [score / size for score in clipped]


def with_values(weights: list[Float64Array], trees: Sequence[SearchTree], value_weight: float) -> list[Float64Array]:
    """``weight + value_weight * Q``: beside what a step does better than others, how often it leads to a right answer.

    A score is 0 where nothing stands beside a step and where all is right. Likelihood of what was right teaches there,
    as rejection sampling does, but a step of lucky answers less than one that always leads there.

    Source: our choice.

    Args:
        weights: for each tree `[N]` float64, of mean magnitude 1.
        trees: the same trees.
        value_weight: at least 0.

    Example: weights (0, 1.5, -0.1) and values (0.5, 1, 0) with 0.5 give (0, 2, -0.1): the root has no weight.
    """
    combined = []
    for weight, tree in zip(weights, trees, strict=True):
        values = tree.values
        values[ROOT] = 0.0
        combined.append(weight + value_weight * values)
    return combined


def transformed(scores: Sequence[Float64Array], config: TrainConfig) -> list[Float64Array]:
    """The scores after ``soft_clip`` and ``weighting``, which come before the clip of negatives.

    Args:
        scores: for each tree `[N]` float64.
        config: `soft_clip`, `weighting` and `weighting_temperature` are used.
    """
    changed = list(scores)
    if config.soft_clip is not None:
        changed = soft_clipped(changed, config.soft_clip)
    if config.weighting == "sign":
        return [np.sign(score) for score in changed]
    if config.weighting == "exp":
        return exponential_weights(changed, config.weighting_temperature)
    return changed


def soft_clipped(scores: Sequence[Float64Array], bound: float) -> list[Float64Array]:
    """``c * tanh(score / c)``, c being `bound` times the mean magnitude of the scores that are not 0.

    Source: DeepSearch (arXiv 2509.25454) bounds its values so; the unit of c is our choice.

    Args:
        scores: for each tree `[N]` float64.
        bound: above 0.

    Example: scores (3, -1) have mean magnitude 2; with bound 1 they become 2 tanh 1.5 = 1.81 and 2 tanh -0.5 = -0.92.
    """
    limit = bound * mean_magnitude(scores)
    return [limit * np.tanh(score / limit) for score in scores]


def exponential_weights(scores: Sequence[Float64Array], temperature: float) -> list[Float64Array]:
    """``min(exp(score / (tau * m)), 20)`` where a score is not 0, m their mean magnitude; 0 where it is.

    Source: advantage-weighted regression, Peng et al. 2019 (arXiv 1910.00177), its bound of 20 included; the unit of
    tau is our choice.

    Args:
        scores: for each tree `[N]` float64.
        temperature: tau, above 0.

    Example: scores (3, -1, 0) have mean magnitude 2; with tau 1 they become e^1.5 = 4.48, e^-0.5 = 0.61 and 0.
    """
    unit = temperature * mean_magnitude(scores)
    highest = math.log(MAX_EXPONENTIAL)
    return [np.where(score != 0, np.exp(np.minimum(score / unit, highest)), 0.0) for score in scores]


def mean_magnitude(arrays: Sequence[Float64Array]) -> float:
    """Mean of the absolute values that are not 0, over all arrays; 1 where all are 0.

    Example: (2, -1, 0) and (-3) give 2.
    """
    magnitudes = np.abs(np.concatenate(arrays)) if arrays else np.zeros(0)
    return float(magnitudes[magnitudes > 0].mean()) if magnitudes.any() else 1.0


def correct_path_weights(tree: SearchTree) -> Float64Array:
    """`[N]` float64: 1 for every step of a path that ends right, else 0; each distinct step once.

    Source: Yuan et al. 2023 (arXiv 2308.01825) for fine-tuning on distinct right solutions; counting a
    shared step once is our choice.
    """
    is_on_path = tree.outcomes == Outcome.CORRECT
    for node in range(tree.num_nodes - 1, 0, -1):  # children stand after their parents
        is_on_path[tree.parents[node]] |= is_on_path[node]
    weights: Float64Array = is_on_path.astype(np.float64)
    weights[0] = 0.0
    return weights


def preference_pairs(tree: SearchTree, scores: Float64Array) -> Int32Array:
    """`[R, 2]` int32: at each branching node the child of highest value and the one of lowest, if they differ.

    Ties go to the child with more visits, then to the earlier one.

    Source: Lai et al. 2024 (arXiv 2406.18629) for preferring steps after one prefix; drawing both from
    the tree is our choice.

    Args:
        tree: where values and visits come from.
        scores: `[N]` float64; children scored 0 were visited too seldom, or lie at the mean, and are passed over.
    """
    values = tree.values
    pairs = []
    for group in tree.sibling_groups().values():
        children = group[(scores[group] != 0) & (tree.visits[group] > 0)]
        if len(children) < 2:
            continue
        by_visits = children[np.argsort(-tree.visits[children], kind="stable")]
        preferred = by_visits[np.argmax(values[by_visits])]
        dispreferred = by_visits[np.argmin(values[by_visits])]
        if values[preferred] > values[dispreferred]:
            pairs.append((preferred, dispreferred))
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)


def _paired(trees: Sequence[SearchTree], scores: Sequence[Float64Array]) -> Iterator[TrainingExample]:
    for tree, score in zip(trees, scores, strict=True):
        yield TrainingExample(tree, np.zeros(tree.num_nodes), preference_pairs(tree, score))


def _check(trees: Sequence[SearchTree], scores: Sequence[Float64Array]) -> None:
    if len(trees) != len(scores):
        raise ValueError(f"{len(trees)} trees but {len(scores)} arrays of scores; give one array per tree")
    for tree, score in zip(trees, scores, strict=True):
        if score.shape != (tree.num_nodes,):
            raise ValueError(f"{tree.problem_id}: {tree.num_nodes} nodes but scores of shape {score.shape}")
        if not np.isfinite(score).all():
            raise ValueError(f"{tree.problem_id}: a score is not finite; check visits and value sums of its tree")
