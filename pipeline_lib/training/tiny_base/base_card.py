"""The card of a tiny base: what it is, what it was made of, and the command that makes it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline_lib.training.tiny_base.pretraining import PretrainingPlan

CARD = """---
license: apache-2.0
---

# Tiny base, scale {scale}

A transformer in Qwen2's layout ({layers} layers of width {width}, {vocab} tokens), pretrained by Coppice for its
tiny world. It exists to be improved by the self-training loop and knows nothing else.

- **Corpus**: {examples:,} worked solutions of `tiny-word` and `tiny-algebra` in turn, generated from the pretrain
  split, which no other split shares a question with. Some kinds of step are wrong more often than not in it
  (misconceptions: see `pipeline_lib/problems/tiny/arithmetic.py`): borrowing, products with a factor of 8 or 9,
  large quotients (both families), moving a term to the other side and squares (algebra only).
- **Command**: `coppice build-base --output DIR --scale {scale} --seed {seed}`
- **Training**: {updates:,} updates of {batch} solutions, AdamW, peak rate {rate}, cosine to 0, loss on solutions only.
- **Duration**: {minutes:.1f} minutes where the committed one was built (2 CPU cores).
- **Greedy accuracy** on {measured} validation problems each: {accuracies}.
- **Licence**: Apache-2.0, as the code that made it.
"""


def write_card(
    path: Path, plan: PretrainingPlan, accuracies: Mapping[str, float], *, seconds: float, num_measured: int
) -> None:
    """Writes the card of a base built by `plan`."""
    shown = ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in accuracies.items())
    text = CARD.format(
        scale=plan.scale,
        layers=plan.num_layers,
        width=plan.hidden_size,
        vocab=plan.vocab_size,
        examples=plan.num_updates * plan.batch_size,
        seed=plan.seed,
        updates=plan.num_updates,
        batch=plan.batch_size,
        rate=plan.peak_rate,
        minutes=seconds / 60,
        measured=num_measured,
        accuracies=shown,
    )
    path.write_text(text, encoding="utf-8")
