"""What the search and the packed training come to on a real model, as ratios within one run.

    python tests/benchmarks/real_model.py --problems 24                            # preset smollm2, transformers
    python tests/benchmarks/real_model.py --problems 24 --set policy.backend=vllm

1. ``search.throughput_vs_raw``: tokens/s of the search over those of as many independent rollouts, abreast on an engine
   of its own.
2. ``train.speedup_vs_per_step``: packed training over one sample per scored step, on the trees of that search.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # so that this folder is `benchmarks`, as in the tests

from benchmarks.measuring import Figure  # noqa: E402
from benchmarks.search_throughput import throughput_figure  # noqa: E402
from benchmarks.training import PackedComparison  # noqa: E402
from rich.console import Console  # noqa: E402

from deployments.presets import PRESETS  # noqa: E402
from pipeline_lib.config import PipelineConfig, apply_overrides  # noqa: E402
from pipeline_lib.policy.model_folders import model_path  # noqa: E402
from pipeline_lib.problems.run_sets import training_pool  # noqa: E402
from tasks.runtime.engines import Engines  # noqa: E402
from tasks.runtime.policies import base_policy  # noqa: E402

NUM_COMPARED = 8  # trees whose training is compared: a real model's single steps take seconds each


def figures(config: PipelineConfig, num_problems: int, rounds: int) -> list[Figure]:
    """Both figures; packed training is compared on trees that have a score."""
    problems = list(training_pool(config)[:num_problems])
    two = Engines(), Engines()
    policy, other = (each.open(config, base_policy(config), dataset=config.problems.dataset) for each in two)
    search, trees, _ = throughput_figure(
        "search.throughput_vs_raw", policy, other, problems, config.search, target=0.97
    )
    eos_token_id = int(policy.codec.tokenizer.eos_token_id)
    for each in two:
        each.close()
    comparison = PackedComparison(
        trees, config, model_dir=model_path(config.policy.model), eos_token_id=eos_token_id, rounds=rounds
    )
    training = comparison.figures("train.speedup_vs_per_step", comparison.examples[:NUM_COMPARED], 4.0)
    return [search, *training]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="smollm2")
    parser.add_argument("--problems", type=int, default=24, metavar="N")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="turns of each side of the training")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    arguments = parser.parse_args()
    started, config = time.perf_counter(), apply_overrides(PRESETS[arguments.preset](), arguments.overrides)
    console = Console()
    for figure in figures(config, arguments.problems, arguments.rounds):
        target = "" if figure.target is None else f" (target {figure.target:g})"
        console.print(f"{figure.name} {figure.value:.3f}{target} {figure.details}", highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - started:.0f} s", highlight=False)


if __name__ == "__main__":
    main()
