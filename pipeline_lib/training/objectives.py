"""The objectives as functions of log-probabilities, and the KL that may be added to each; one loop serves all.

Every loss is a sum over a forward pass divided by a count over the *update*, so that the
gradients of an update's forward passes simply add up, however it was cut.

Departure from arXiv 2501.01478, where it is silent: the sum runs over tokens, not over steps, and is
divided by the number of scored tokens. A long step then counts more than a short one, as
it does in plain cross-entropy, to which `relative_correctness_loss` reduces with all weights 1 and beta 0.

``kl_beta`` is the same term under every objective. Left open it is what each was published with: relative correctness
with the KL, RFT and step-DPO without, the latter having the reference in its loss already.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relative_correctness_loss(
    log_probs: Tensor, weights: Tensor, kls: Tensor | None, *, kl_beta: float, num_scored_tokens: int
) -> Tensor:
    """Weighted negative log-likelihood of the steps plus a KL penalty towards the previous iteration's policy.

    ``sum_m (-w_m * log p_m + kl_beta * KL_m) / num_scored_tokens``. Where a weight is negative its term has no
    lower bound; clip weights before.

    Source: arXiv 2501.01478 (score-weighted likelihood, KL against the previous policy); the
    normalisation is our choice.
    Shapes: M scored tokens of this forward pass.

    Args:
        log_probs: `[M]` float32, log-probability of each scored token given problem and prefix.
        weights: `[M]` float32, the weight of the token's step.
        kls: `[M]` float32, KL(current || reference) over the vocabulary at each scored token; None with `kl_beta` 0.
        kl_beta: at least 0.
        num_scored_tokens: scored tokens of the whole update, at least 1.

    Example: probabilities (0.5, 0.25), weights (1, -0.5), KL (0.2, 0), beta 0.1 give
    (ln 2 - 0.5 ln 4 + 0.02) / 2 = 0.01.
    """
    likelihood = -(weights * log_probs).sum() / num_scored_tokens
    return likelihood + kl_penalty(kls, kl_beta=kl_beta, num_scored_tokens=num_scored_tokens)


def clipped_surrogate_loss(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    weights: Tensor,
    *,
    ratio_clip: float,
    num_scored_tokens: int,
) -> Tensor:
    """Relative correctness under PPO's clip: the gradient of a token ends where its probability has moved enough.

    ``-sum_m min(r_m w_m, clip(r_m, 1 - ratio_clip, 1 + ratio_clip) w_m) / num_scored_tokens`` with ``r = p /
    p_reference``; `kl_penalty` comes on top. Where both policies agree its gradient is that of
    `relative_correctness_loss`; a token of negative weight, whose loss there has no lower bound, has no gradient left
    below ``r = 1 - ratio_clip``.

    Source: Schulman et al. 2017 (arXiv 1707.06347), per token, with step weights for advantages. The reference is the
    policy that sampled, but for temperature and top_p.
    Shapes: M scored tokens of this forward pass.

    Args:
        log_probs: `[M]` float32.
        reference_log_probs: `[M]` float32, no gradient.
        weights: `[M]` float32, the weight of the token's step.
        ratio_clip: in (0, 1).
        num_scored_tokens: scored tokens of the whole update, at least 1.

    Example: probabilities (0.6, 0.2) where the reference has (0.4, 0.4), weights (1, -1) and clip 0.2 give
    -(1.2 - 0.8) / 2 = -0.2, without a gradient for either token.
    """
    ratios = (log_probs - reference_log_probs).exp()
    clipped = ratios.clamp(1 - ratio_clip, 1 + ratio_clip)
    return -torch.minimum(ratios * weights, clipped * weights).sum() / num_scored_tokens


def kl_penalty(kls: Tensor | None, *, kl_beta: float, num_scored_tokens: int) -> Tensor | float:
    """``kl_beta * sum_m KL_m / num_scored_tokens``, what holds a policy near the previous iteration's.

    Source: arXiv 2501.01478.
    Shapes: M scored tokens of this forward pass.

    Args:
        kls: `[M]` float32; None with `kl_beta` 0.
        kl_beta: at least 0.
        num_scored_tokens: scored tokens of the whole update, at least 1.

    Example: KL (0.2, 0) and beta 0.1 give 0.01.
    """
    return kl_beta * kls.sum() / num_scored_tokens if kls is not None and kl_beta > 0 else 0.0


def rft_loss(log_probs: Tensor, *, num_scored_tokens: int) -> Tensor:
    """Plain negative log-likelihood of the steps of right solutions, per scored token.

    ``-sum_m log p_m / num_scored_tokens``; `kl_penalty` comes on top where ``kl_beta`` asks for it.

    Source: Yuan et al. 2023 (arXiv 2308.01825), rejection-sampling fine-tuning.
    Shapes: M scored tokens of this forward pass.

    Args:
        log_probs: `[M]` float32.
        num_scored_tokens: scored tokens of the whole update, at least 1.

    Example: probabilities (0.5, 0.25) give (ln 2 + ln 4) / 2 = 1.5 ln 2.
    """
    return -log_probs.sum() / num_scored_tokens


def step_dpo_loss(
    log_probs: Tensor,
    reference_log_probs: Tensor,
    segments: Tensor,
    *,
    num_pairs: int,
    dpo_beta: float,
    num_pairs_in_update: int,
) -> Tensor:
    """Direct preference optimisation between two steps after the same prefix.

    ``-sum_r log sigmoid(dpo_beta * (D(preferred_r) - D(other_r))) / num_pairs_in_update`` where D of a step
    is the sum over its tokens of ``log p - log p_reference``.

    Source: Lai et al. 2024 (arXiv 2406.18629), after Rafailov et al. 2023 (arXiv 2305.18290).
    Shapes: M scored tokens, R pairs of this forward pass.

    Args:
        log_probs: `[M]` float32.
        reference_log_probs: `[M]` float32, no gradient.
        segments: `[M]` int64 in [0, 2 R): ``2 r`` for tokens of pair r's preferred step, ``2 r + 1`` for the other's.
        num_pairs: R.
        dpo_beta: above 0.
        num_pairs_in_update: pairs of the whole update, at least 1.

    Example: where current and reference agree the loss is ln 2 per pair; with D 1 and -1 and beta 0.5 it is
    ln(1 + 1/e) = 0.3133.
    """
    steps = log_probs.new_zeros(2 * num_pairs).index_add(0, segments, log_probs - reference_log_probs)
    margins = steps[0::2] - steps[1::2]
    return -torch.nn.functional.logsigmoid(dpo_beta * margins).sum() / num_pairs_in_update
