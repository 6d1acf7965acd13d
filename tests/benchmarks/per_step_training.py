"""The plain way to train on trees: one row per scored step, its prefix computed again each time.

What packing is measured against, and what its gradients must equal. It shares the loss functions with
`pipeline_lib.training`, and none of the packing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline_lib.config import TrainConfig
from pipeline_lib.training.objectives import relative_correctness_loss
from pipeline_lib.training.trained_policy import TrainedPolicy
from pipeline_lib.types import STOPPED, Outcome, TrainingExample

Row = tuple[list[int], list[int], float]


def per_step_rows(examples: Sequence[TrainingExample], *, eos_token_id: int) -> list[Row]:
    """(context ids, step ids, weight) for every step with a weight."""
    rows: list[Row] = []
    for example in examples:
        tree = example.tree
        for node in range(1, tree.num_nodes):
            if example.weights[node] == 0:
                continue
            *prefix, last = tree.path(node)
            context = [int(i) for ids in (tree.prompt_token_ids, *(tree.token_ids[n] for n in prefix)) for i in ids]
            step = [int(i) for i in tree.token_ids[last]]
            if tree.outcomes[node] in (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED):
                known = tree.end_token_id(node)
                step += [] if known == STOPPED else [eos_token_id if known is None else known]
            rows.append((context, step, float(example.weights[node])))
    return rows


def per_step_gradients(
    trained: TrainedPolicy, rows: Sequence[Row], config: TrainConfig, *, rows_per_batch: int = 16
) -> tuple[float, int]:
    """Adds the gradients of the relative-correctness loss over `rows`; returns the loss and the tokens computed."""
    num_scored_tokens = sum(len(step) for _, step, _ in rows)
    total, num_tokens = 0.0, 0
    for start in range(0, len(rows), rows_per_batch):
        batch = rows[start : start + rows_per_batch]
        width = max(len(context) + len(step) for context, step, _ in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        weights = torch.zeros(len(batch), width)
        scored = torch.zeros(len(batch), width, dtype=torch.bool)
        for row, (context, step, weight) in enumerate(batch):
            end = len(context) + len(step)
            ids[row, :end] = torch.tensor(context + step)
            weights[row, len(context) : end] = weight
            scored[row, len(context) : end] = True
        log_probs, kls = _terms(trained, ids, config)
        loss = relative_correctness_loss(
            log_probs[scored[:, 1:]],
            weights[:, 1:][scored[:, 1:]],
            None if kls is None else kls[scored[:, 1:]],
            kl_beta=config.kl_weight,
            num_scored_tokens=num_scored_tokens,
        )
        loss.backward()
        total += float(loss.detach())
        num_tokens += ids.numel()
    return total, num_tokens


def _terms(trained: TrainedPolicy, ids: torch.Tensor, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor | None]:
    log_q = None
    if config.kl_weight > 0:
        with torch.no_grad(), trained.reference_active() as reference:
            log_q = reference(ids[:, :-1]).logits.log_softmax(-1)
    log_p = trained.model(ids[:, :-1]).logits.log_softmax(-1)
    log_probs = log_p.gather(-1, ids[:, 1:, None])[..., 0]
    return log_probs, None if log_q is None else (log_p.exp() * (log_p - log_q)).sum(-1)
