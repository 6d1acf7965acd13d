"""Builds a tiny base: the policy that self-training starts from in the tiny world."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from tasks.pretrain import install_base, measure_base, pretrain_base


@flow(name="build-base", flow_run_name="scale-{scale}-seed-{seed}")
def build_base(output_dir: Path, scale: int = 1, seed: int = 0, num_threads: int = 1) -> dict[str, float]:
    """Pretrains a small transformer on worked solutions that hold misconceptions.

    1. Write the corpus as it is read, train tokenizer and model on it; resumable.
    2. Measure greedy accuracy on both families' validation splits.
    3. Put the model folder with its card in place.

    Args:
        output_dir: becomes a model folder with tokenizer, chat template and card.
        scale: size of model and numbers; 1 is the base that comes with Coppice.
        seed: of weights and corpus.
        num_threads: torch threads.

    Returns:
        Greedy accuracy by dataset.
    """
    base = pretrain_base(scale=scale, seed=seed, num_threads=num_threads)
    accuracies = measure_base(base=base, scale=scale, num_threads=num_threads)
    install_base(base=base, output_dir=output_dir, accuracies=accuracies, scale=scale, seed=seed)
    return accuracies
