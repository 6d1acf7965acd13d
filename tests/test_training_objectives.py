import math

import pytest
import torch

from pipeline_lib.training.log_probs import token_terms
from pipeline_lib.training.objectives import (
    clipped_surrogate_loss,
    relative_correctness_loss,
    rft_loss,
    step_dpo_loss,
)

LOG_PROBS = torch.tensor([0.5, 0.25]).log()


class Identity(torch.nn.Linear):
    """An output layer that hands the hidden states on as logits."""

    def __init__(self, size):
        super().__init__(size, size, bias=False)
        self.weight = torch.nn.Parameter(torch.eye(size))


def test_relative_correctness_by_hand():
    loss = relative_correctness_loss(
        LOG_PROBS, torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.0]), kl_beta=0.1, num_scored_tokens=2
    )
    assert float(loss) == pytest.approx(0.01)


def test_all_weights_1_and_beta_0_is_plain_cross_entropy():
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    terms = token_terms(logits, Identity(5), targets)
    loss = relative_correctness_loss(terms.log_probs, torch.ones(7), None, kl_beta=0, num_scored_tokens=7)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, targets))
    torch.testing.assert_close(rft_loss(terms.log_probs, num_scored_tokens=7), loss)


def test_rft_by_hand():
    assert float(rft_loss(LOG_PROBS, num_scored_tokens=2)) == pytest.approx(1.5 * math.log(2))


def test_step_dpo_by_hand():
    segments = torch.tensor([0, 1])
    equal = step_dpo_loss(LOG_PROBS, LOG_PROBS, segments, num_pairs=1, dpo_beta=0.5, num_pairs_in_update=1)
    assert float(equal) == pytest.approx(math.log(2))
    apart = step_dpo_loss(
        torch.tensor([1.0, -1.0]), torch.zeros(2), segments, num_pairs=1, dpo_beta=0.5, num_pairs_in_update=1
    )
    assert float(apart) == pytest.approx(math.log(1 + math.exp(-1)))


def surrogate(log_probs, reference, weights):
    """The clipped surrogate at 0.2, and its gradient by log-probability."""
    log_probs = log_probs.clone().requires_grad_(True)
    loss = clipped_surrogate_loss(log_probs, reference, weights, ratio_clip=0.2, num_scored_tokens=len(weights))
    (gradient,) = torch.autograd.grad(loss, log_probs)
    return loss.detach(), gradient


def test_the_clipped_surrogate_by_hand():
    weights = torch.tensor([1.0, -1.0])
    loss, gradient = surrogate(torch.tensor([0.6, 0.2]).log(), torch.tensor([0.4, 0.4]).log(), weights)
    assert float(loss) == pytest.approx(-0.2)
    assert gradient.tolist() == [0, 0]  # both have moved past the clip, to where their weights push them
    _, back = surrogate(torch.tensor([0.2, 0.6]).log(), torch.tensor([0.4, 0.4]).log(), weights)
    assert back.tolist() == pytest.approx([-0.5 / 2, 1.5 / 2])  # the wrong way: the pull back is not clipped


def test_where_the_policy_is_the_reference_the_surrogate_pushes_like_the_likelihood():
    log_probs, weights = LOG_PROBS.clone().requires_grad_(True), torch.tensor([1.0, -0.5])
    likelihood = relative_correctness_loss(log_probs, weights, None, kl_beta=0, num_scored_tokens=2)
    (plain,) = torch.autograd.grad(likelihood, log_probs)
    torch.testing.assert_close(surrogate(LOG_PROBS, LOG_PROBS, weights)[1], plain)


def test_step_dpo_sums_the_tokens_of_a_step():
    whole = step_dpo_loss(
        torch.tensor([-1.0, -3.0]),
        torch.zeros(2),
        torch.tensor([0, 1]),
        num_pairs=1,
        dpo_beta=1.0,
        num_pairs_in_update=2,
    )
    halves = step_dpo_loss(
        torch.tensor([-0.5, -0.5, -2.0, -1.0]),
        torch.zeros(4),
        torch.tensor([0, 0, 1, 1]),
        num_pairs=1,
        dpo_beta=1.0,
        num_pairs_in_update=2,
    )
    torch.testing.assert_close(whole, halves)


def test_kl_by_hand():
    hidden = torch.tensor([[0.5, 0.5]]).log()
    reference = torch.tensor([[0.25, 0.75]]).log()
    head = Identity(2)
    terms = token_terms(hidden, head, torch.tensor([0]), reference_hidden=reference, reference_head=head)
    assert terms.kls.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert terms.reference_log_probs.item() == pytest.approx(math.log(0.25))


def test_chunks_change_neither_values_nor_gradients():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 6, generator=generator, requires_grad=True)
    reference = torch.randn(10, 6, generator=generator)
    head = torch.nn.Linear(6, 9, bias=False)
    targets = torch.arange(10) % 9
    gradients = []
    for logits_per_chunk in (1000, 27):  # all at once; three tokens at a time
        terms = token_terms(
            hidden,
            head,
            targets,
            reference_hidden=reference,
            reference_head=head,
            logits_per_chunk=logits_per_chunk,
        )
        loss = relative_correctness_loss(terms.log_probs, torch.ones(10), terms.kls, kl_beta=0.3, num_scored_tokens=10)
        gradients.append(torch.autograd.grad(loss, (hidden, head.weight)))
    torch.testing.assert_close(gradients[0], gradients[1])
