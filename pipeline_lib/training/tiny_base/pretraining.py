"""Pretrains a tiny base on (question, solution) pairs: what the self-training loop starts from.

One number sets its size: ``scale`` 1 is the committed base (0.8 M parameters, minutes on two
cores); ``scale`` 2 has twice its width and so on, for those who own a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline_lib.training.batches.batching import first_fit_decreasing
from pipeline_lib.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline_lib.training.tiny_base.byte_tokenizer import build_tokenizer

Corpus = Callable[[int], Iterator[tuple[str, str]]]
IGNORED = -100
ROW_TOKENS = 192


@dataclass(frozen=True, slots=True)
class PretrainingPlan:
    """Every number of a pretraining run.

    Args:
        seed: draws the first weights.
        scale: 1, 2, …: width 128·scale, and numbers with scale + 1 digits.
        num_updates: optimizer updates; the rate falls to 0 over them.
        batch_size: pairs per update.
        peak_rate: AdamW's, reached after 100 updates, cosine to 0.
        vocab_size: tokenizer entries.
        num_layers: transformer layers.
        tokenizer_pairs: pairs that the tokenizer is trained on.
        checkpoint_every: updates between checkpoints.
    """

    seed: int = 0
    scale: int = 1
    num_updates: int = 1600
    batch_size: int = 64
    peak_rate: float = 3e-3
    vocab_size: int = 512
    num_layers: int = 4
    tokenizer_pairs: int = 4000
    checkpoint_every: int = 500

    @property
    def hidden_size(self) -> int:
        return 128 * self.scale


def pretrain(
    corpus: Corpus,
    plan: PretrainingPlan,
    output_dir: Path,
    checkpoint_dir: Path,
    *,
    device: str = "cpu",
    on_update: Callable[[int, float], None] | None = None,
) -> None:
    """Writes a model folder with tokenizer and chat template; goes on from a checkpoint when there is one.

    The loss is cross-entropy on the solutions, mean over their tokens.

    Args:
        corpus: ``corpus(start)`` yields pairs from number `start` on, for ever.
        plan: see `PretrainingPlan`.
        output_dir: becomes the model folder.
        checkpoint_dir: holds the last checkpoint while it runs.
        device: torch device.
        on_update: called with (updates done, loss).
    """
    pairs = corpus(0)
    texts = ("\n".join(next(pairs)) for _ in range(plan.tokenizer_pairs))
    tokenizer = build_tokenizer(texts, plan.vocab_size)
    model = _build_model(plan, tokenizer).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.peak_rate, betas=(0.9, 0.95), weight_decay=0.05)
    parameters, fingerprint = dict(model.named_parameters()), str(plan)
    history = load_checkpoint(checkpoint_dir, fingerprint, parameters, optimizer)
    pairs = corpus(len(history) * plan.batch_size)
    for update in range(len(history), plan.num_updates):
        batch = [next(pairs) for _ in range(plan.batch_size)]
        loss = _update(model, optimizer, _pack(tokenizer, batch, device), _rate(plan, update))
        history.append({"loss": loss})
        if on_update:
            on_update(update + 1, loss)
        if (update + 1) % plan.checkpoint_every == 0:
            save_checkpoint(checkpoint_dir, history, fingerprint, parameters, optimizer)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def _build_model(plan: PretrainingPlan, tokenizer: Any) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(plan.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden_size,
        intermediate_size=3 * plan.hidden_size,
        num_hidden_layers=plan.num_layers,
        num_attention_heads=4 * plan.scale,
        num_key_value_heads=2 * plan.scale,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def _rate(plan: PretrainingPlan, update: int) -> float:
    warm = min(1.0, (update + 1) / 100)
    cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * update / plan.num_updates)).item())
    return plan.peak_rate * warm * cosine


@dataclass(frozen=True, slots=True)
class _Packed:
    """Several pairs to a row, each blind to the others; R rows of `ROW_TOKENS` tokens."""

    ids: torch.Tensor  # [R, T]
    labels: torch.Tensor  # [R, T]; IGNORED on questions and padding
    positions: torch.Tensor  # [R, T]; from 0 in each pair
    mask: torch.Tensor  # [R, 1, T, T]; True where query may see key


def _pack(tokenizer: Any, batch: list[tuple[str, str]], device: str) -> _Packed:
    """The pairs in few rows: half the tokens of one padded pair a row."""
    chats = [[{"role": "user", "content": question}] for question, _ in batch]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    answers = tokenizer([answer for _, answer in batch]).input_ids
    pairs = [(prompt, [*answer, tokenizer.eos_token_id]) for prompt, answer in zip(prompts, answers, strict=True)]
    lengths = [len(prompt) + len(answer) for prompt, answer in pairs]
    width = max(ROW_TOKENS, *lengths)
    rows = [[pairs[index] for index in row] for row in first_fit_decreasing(lengths, width)]
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    positions = torch.zeros(len(rows), width, dtype=torch.long)
    segment = torch.arange(width).expand(len(rows), width) + width  # each pad is a segment of its own
    segment = segment.clone()
    for r, members in enumerate(rows):
        start = 0
        for number, (prompt, answer) in enumerate(members):
            end = start + len(prompt) + len(answer)
            ids[r, start:end] = torch.tensor(prompt + answer)
            labels[r, start + len(prompt) : end] = torch.tensor(answer)
            positions[r, start:end] = torch.arange(end - start)
            segment[r, start:end] = number
            start = end
    mask = (segment[:, :, None] == segment[:, None, :]) & torch.ones(width, width, dtype=torch.bool).tril()
    return _Packed(ids.to(device), labels.to(device), positions.to(device), mask[:, None].to(device))


def _update(model: Any, optimizer: torch.optim.Optimizer, batch: _Packed, rate: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate
    hidden = model.model(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state[:, :-1]
    scored = batch.labels[:, 1:] != IGNORED
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[scored]).float(), batch.labels[:, 1:][scored])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())
