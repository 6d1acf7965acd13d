"""Log-probabilities and exact KL of scored tokens, from hidden states, without ever holding all logits.

One idea: the output layer is applied to scored positions only, and to so many at a time that
their logits stay below a fixed size. With more than one such chunk, each is recomputed in the backward pass:
a vocabulary of 150,000 would otherwise take 0.6 MB per token, twice.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGITS_PER_CHUNK = 2**25  # 128 MiB in float32


class TokenTerms(NamedTuple):
    """What the objectives need of each scored token.

    Shapes: M scored tokens.

    Args:
        log_probs: `[M]` float32, log-probability of the token under the current policy.
        reference_log_probs: `[M]` float32 without gradient; None without a reference.
        kls: `[M]` float32, KL(current || reference) in nats; None without a reference.
    """

    log_probs: Tensor
    reference_log_probs: Tensor | None = None
    kls: Tensor | None = None


def token_terms(
    hidden: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    reference_hidden: Tensor | None = None,
    reference_head: nn.Module | None = None,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> TokenTerms:
    """Log-probability of each target, and the KL to the reference where one is given.

    ``KL = sum_v p_v (log p_v - log q_v)`` over the whole vocabulary, not estimated from the sampled token.

    Shapes: M scored tokens, H hidden units, V vocabulary.

    Args:
        hidden: `[M, H]`, hidden states that predict the targets.
        head: output layer, `[M, H]` to `[M, V]`.
        targets: `[M]` int64.
        reference_hidden: `[M, H]` without gradient.
        reference_head: the reference's output layer; it may be `head` itself.
        logits_per_chunk: largest number of logits held at once.

    Example: current (0.5, 0.5), reference (0.25, 0.75): KL = 0.5 ln 2 + 0.5 ln(2/3) = 0.1438.
    """
    size = max(1, logits_per_chunk // _vocabulary_size(head))
    chunks: list[TokenTerms] = []
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        reference = None if reference_hidden is None else reference_hidden[part]
        arguments = (hidden[part], head, targets[part], reference, reference_head)
        chunks.append(
            _chunk_terms(*arguments)
            if len(targets) <= size
            else checkpoint(_chunk_terms, *arguments, use_reentrant=False, preserve_rng_state=False)
        )
    log_probs, references, kls = zip(*chunks, strict=True)
    if reference_hidden is None:
        return TokenTerms(torch.cat(log_probs))
    return TokenTerms(torch.cat(log_probs), torch.cat(references), torch.cat(kls))


def _vocabulary_size(head: nn.Module) -> int:
    weight = head.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0])


def _chunk_terms(
    hidden: Tensor, head: nn.Module, targets: Tensor, reference_hidden: Tensor | None, reference_head: nn.Module | None
) -> TokenTerms:
    log_p = head(hidden).float().log_softmax(-1)
    log_probs = log_p.gather(1, targets[:, None])[:, 0]
    if reference_hidden is None or reference_head is None:
        return TokenTerms(log_probs)
    with torch.no_grad():
        log_q = reference_head(reference_hidden).float().log_softmax(-1)
    kls = (log_p.exp() * (log_p - log_q)).sum(-1)
    return TokenTerms(log_probs, log_q.gather(1, targets[:, None])[:, 0], kls)
