"""Drawing tokens, one random number per request and token.

One idea: token t of a request is the inverse of the cumulative distribution at u_t, and u_t comes from
a counter-based generator keyed by the request's seed alone. Rows do not share a random stream, so
what else is in the batch, and in which order, changes nothing.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.types import Float64Array

MOST_PROBABLE = 1024  # tokens of a row that are sorted at first


class _Philox(threading.local):
    """One generator a thread, and the state in which a new one starts."""

    def __init__(self) -> None:
        self.generator = np.random.Generator(np.random.Philox(key=0))
        self.start = self.generator.bit_generator.state


_PHILOX = _Philox()


def draw_uniforms(seed: int, num_tokens: int) -> Float64Array:
    """`[num_tokens]` float64 in [0, 1): u_t of a request, a Philox stream keyed by its seed in [0, 2**63).

    A longer draw starts with the shorter one: ``draw_uniforms(s, 9)[:4] == draw_uniforms(s, 4)``.
    """
    start = _PHILOX.start
    start["state"]["key"][0] = seed
    _PHILOX.generator.bit_generator.state = start  # an eighth of what a new generator costs
    return _PHILOX.generator.random(num_tokens)


def draw_tokens(
    logits: Tensor,
    uniforms: Tensor,
    temperatures: Tensor,
    top_ps: Tensor,
    top_ks: Tensor | None = None,
    min_ps: Tensor | None = None,
) -> Tensor:
    """`[B]` int64 token ids; -1 where a row's logits are not finite numbers.

    Greedy where the temperature is 0, else the first token whose cumulative probability exceeds u.
    Tokens less probable than ``min_p`` times the most probable one take no part, nor those beyond the ``top_k`` most
    probable ones; with ``top_p < 1``, of what is left, only the smallest set of most probable tokens with at least that
    share of its mass. All three look at the probabilities that the temperature gives, in this order, as vLLM does.

    Source: inverse transform sampling; nucleus as in Holtzman et al. 2020, arXiv 1904.09751; min_p as in Nguyen et al.
    2024, arXiv 2407.01082.
    Shapes: logits `[B, V]`; the rest `[B]`, uniforms float64, top_ks int64 (0 or None keeps all), the others float32.

    Example: probabilities (0.2, 0.5, 0.3) give token 0 for u = 0.1, 1 for u = 0.2 and 2 for u = 0.95;
    with top_p 0.6, top_k 2 or min_p 0.5, tokens 1 and 2 remain, in that order, as 0.625 and 0.375.
    """
    logits = logits.float()
    largest, tokens = logits.max(dim=-1)
    sampled = temperatures > 0
    if bool(sampled.any()):
        # One branch per row kind, chosen by the row's own parameters: the sums of one row never depend on another.
        scaled = (logits - largest[:, None]) / torch.where(sampled, temperatures, 1.0)[:, None]
        probs = torch.softmax(scaled, dim=-1)
        top_ks = torch.zeros_like(uniforms, dtype=torch.int64) if top_ks is None else top_ks
        min_ps = torch.zeros_like(top_ps) if min_ps is None else min_ps
        is_cut = (top_ps < 1) | (top_ks > 0) | (min_ps > 0)
        cut, whole = (torch.nonzero(sampled & which).squeeze(1) for which in (is_cut, ~is_cut))
        if len(whole):
            tokens[whole] = _invert(probs[whole], uniforms[whole])
        if len(cut):
            tokens[cut] = _draw_likely(probs[cut], uniforms[cut], top_ps[cut], top_ks[cut], min_ps[cut])
    return torch.where(torch.isfinite(largest), tokens, -1)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """`[B]` float32 log-probabilities of drawn tokens in nats, whatever temperature or cut they were drawn with.

    ``z_token - log(sum_v exp(z_v))``

    Shapes: logits `[B, V]`, tokens `[B]` int64 in [0, V).

    Example: probabilities (0.2, 0.5, 0.3) and token 1 give ln 0.5 = -0.693.
    """
    return torch.log_softmax(logits.float(), dim=-1).gather(1, tokens[:, None]).squeeze(1)


def _invert(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The first index whose cumulative sum exceeds u times the whole; float64 keeps long vocabularies exact."""
    cumulative = torch.cumsum(probs, dim=-1, dtype=torch.float64)
    drawn = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    return drawn.clamp_(max=probs.shape[-1] - 1)


def _draw_likely(probs: Tensor, uniforms: Tensor, top_ps: Tensor, top_ks: Tensor, min_ps: Tensor) -> Tensor:
    """`[B]` the token at u among the likely ones of each row; see `draw_tokens`.

    To sort 49,152 tokens takes longer than to compute their logits with a model of 135M, so only the most probable ones
    are; a row that may need more has all of them sorted, and every row comes to what it would come to then.
    """
    ordered, indices = _most_probable(probs)
    kept, is_certain = _kept(ordered, top_ps, top_ks, min_ps)
    drawn = indices.gather(1, _invert(kept, uniforms)[:, None]).squeeze(1)
    if probs.shape[-1] > MOST_PROBABLE and not bool(is_certain.all()):
        rest = torch.nonzero(~is_certain).squeeze(1)
        ordered, indices = torch.sort(probs[rest], dim=-1, descending=True, stable=True)
        kept, _ = _kept(ordered, top_ps[rest], top_ks[rest], min_ps[rest])
        drawn[rest] = indices.gather(1, _invert(kept, uniforms[rest])[:, None]).squeeze(1)
    return drawn


def _most_probable(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Values and indices of each row's `MOST_PROBABLE` largest, as a stable sort orders them, last ties apart."""
    found = torch.topk(probs, min(MOST_PROBABLE, probs.shape[-1]), dim=-1, sorted=False).indices.sort(dim=-1).values
    ordered, order = torch.sort(probs.gather(1, found), dim=-1, descending=True, stable=True)
    return ordered, found.gather(1, order)


def _kept(ordered: Tensor, top_ps: Tensor, top_ks: Tensor, min_ps: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities that take part, 0 elsewhere, and the rows in which no less probable token can take part.

    Shapes: ordered and the first result `[B, K]`, descending; the second result `[B]` bool.
    """
    ranks = torch.arange(ordered.shape[-1], device=ordered.device)
    is_within = (ranks < top_ks[:, None]) | (top_ks == 0)[:, None]
    left = torch.where(is_within & (ordered >= min_ps[:, None] * ordered[:, :1]), ordered, 0.0)
    mass_before = torch.cumsum(left, dim=-1, dtype=torch.float64) - left
    # A softmax adds up to 1, so rows that nothing was taken from need no sum, whose rounding would move their nucleus.
    is_reduced = (top_ks > 0) | (min_ps > 0)
    mass = torch.where(is_reduced, left.sum(dim=-1, dtype=torch.float64), 1.0)
    kept = torch.where(mass_before < (top_ps * mass)[:, None], left, 0.0)
    # Tokens as probable as the last one may have others of their kind beyond it.
    ends_within = ~((kept > 0) & (ordered == ordered[:, -1:])).any(dim=-1)
    return kept, ends_within & (~is_reduced | (left[:, -1] == 0))
