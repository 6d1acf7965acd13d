"""Search and training in bfloat16 on CUDA, with models of random weights: tokens per second, and memory as estimated.

Tokens per second are of this GPU and so without a target. Each layout's model is written once, to a temporary folder.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from benchmarks.measuring import Figure, measure
from benchmarks.random_model import LAYOUTS, NoGrader, rewarded_in_turns, write_random_model
from benchmarks.search_throughput import raw_requests

from pipeline_lib.config import PipelineConfig, PolicyConfig, SearchConfig, TrainConfig
from pipeline_lib.policy.protocol import sample_all
from pipeline_lib.policy.tokenizers import load_codec
from pipeline_lib.policy.transformers_engine.sampling_memory import sampling_memory
from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy
from pipeline_lib.score import score_tree
from pipeline_lib.search import search_trees
from pipeline_lib.training.batches.examples import build_examples
from pipeline_lib.training.loop import train
from pipeline_lib.training.result import UpdateMetrics
from pipeline_lib.training.training_memory import training_memory
from pipeline_lib.types import Problem, SearchTree

POLICY = PolicyConfig(device="cuda", dtype="bfloat16", max_batch=256, max_context_tokens=256)
SEARCH = SearchConfig(num_simulations=8, max_new_tokens=128, step_delimiter=" ")
TRAIN = TrainConfig(
    num_epochs=1,
    tokens_per_update=16_384,
    tokens_per_microbatch=8192,
    gradient_checkpointing=True,
    checkpoint_every=100,
)
NUM_PROBLEMS = 128  # with 4 simulations of each in flight, twice what the engine holds
TOLERANCE = 0.15


def gpu_figures(config: PipelineConfig, home: Path) -> list[Figure]:
    """The figures ``gpu.*`` of every layout but the smallest."""
    figures: list[Figure] = []
    for layout in list(LAYOUTS)[1:]:
        folder = home / layout
        write_random_model(folder / "model", layout, dtype=torch.bfloat16, device="cuda")
        searched, trees = _search(layout, folder / "model")
        figures += [*searched, *_train(layout, folder, trees, config)]
    return figures


def _search(layout: str, model: Path) -> tuple[list[Figure], list[SearchTree]]:
    problems = [Problem(f"p/{i}", f"What is {i} plus {i}?", str(2 * i), "tiny-word") for i in range(NUM_PROBLEMS)]
    estimate = sampling_memory(model, POLICY)
    _start_counting()
    policy = TransformersPolicy(model, policy_id=layout, config=POLICY, codec=load_codec(model, POLICY))
    requests = raw_requests(policy, problems, SEARCH, seed=1)
    sample_all(policy, requests[:32])  # first calls pay for allocations
    trees: list[SearchTree] = []

    def search() -> float:
        search_trees(problems, policy, NoGrader(), SEARCH, seed=0, on_tree=trees.append)
        return float(policy.stats.tokens_generated - before)

    before = policy.stats.tokens_generated
    searched = measure(search)
    raw = measure(lambda: float(sum(len(result.token_ids) for result in sample_all(policy, requests).values())))
    rates = searched.rate("wall"), raw.rate("wall")
    figures = [
        Figure(f"gpu.search_tokens_per_s_{layout}", rates[0], details={"raw": rates[1], **_hardware()}),
        Figure(f"gpu.search_vs_raw_{layout}", rates[0] / rates[1]),
        _memory(f"gpu.search_memory_{layout}", estimate.total),
    ]
    policy.close()
    return figures, trees


def _train(layout: str, folder: Path, trees: list[SearchTree], config: PipelineConfig) -> list[Figure]:
    rewarded = [rewarded_in_turns(tree) for tree in trees]
    examples = build_examples(rewarded, [score_tree(tree, config.score) for tree in rewarded], TRAIN)
    estimate = training_memory(folder / "model", TRAIN, POLICY)
    times: list[float] = []

    def on_update(_: UpdateMetrics) -> None:
        times.append(time.perf_counter())

    _start_counting()
    result = train(
        examples,
        model_dir=folder / "model",
        previous_adapter=None,
        output_dir=folder / "adapter",
        checkpoint_dir=folder / "checkpoint",
        config=TRAIN,
        policy=POLICY,
        seed=0,
        on_update=on_update,
    )
    num_tokens = sum(update["num_tokens"] for update in result.history[1:])  # the first pays for allocations
    losses = [round(update["loss"], 5) for update in (result.history[0], result.history[-1])]
    details = {"updates": len(times), "losses": losses, "tokens": num_tokens}
    return [
        Figure(f"gpu.train_tokens_per_s_{layout}", num_tokens / (times[-1] - times[0]), details=details),
        _memory(f"gpu.train_memory_{layout}", estimate.total),
    ]


def _start_counting() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def _memory(name: str, estimate: int) -> Figure:
    """How far the peak lies from the estimate, relative."""
    peak = torch.cuda.max_memory_allocated()
    details = {
        "peak_mib": peak >> 20,
        "estimate_mib": estimate >> 20,
        "reserved_mib": torch.cuda.max_memory_reserved() >> 20,
    }
    return Figure(f"{name}_error", abs(peak / estimate - 1), TOLERANCE, at_least=False, details=details)


def _hardware() -> dict[str, object]:
    return {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
