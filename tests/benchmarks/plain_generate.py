"""Tokens per second of both engines beside vLLM's own ``LLM.generate``: the same prompts, sampling and threads.

    .venv-vllm/bin/python tests/benchmarks/plain_generate.py --set policy.dtype=bfloat16     # preset smollm2

Answers end by the model's own tokens or by length alone, since ``generate`` knows no other end; they are not the same
answers, as each draws from its own generator, so rates are compared. Sides take turns, each on an engine of its own,
``generate`` with vLLM's defaults but for dtype, context, rows and
memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])  # so that this folder is `benchmarks`, as in the tests

from benchmarks.measuring import in_turns, paired_speedup  # noqa: E402
from rich.console import Console  # noqa: E402

from deployments.presets import PRESETS  # noqa: E402
from pipeline_lib.config import PipelineConfig, apply_overrides  # noqa: E402
from pipeline_lib.policy.model_folders import model_path  # noqa: E402
from pipeline_lib.policy.protocol import SampleRequest, sample_all  # noqa: E402
from pipeline_lib.policy.vllm_engine.engine_arguments import import_vllm, threads_stay_settable  # noqa: E402
from pipeline_lib.problems.run_sets import training_pool  # noqa: E402
from pipeline_lib.search import sampling_params  # noqa: E402
from pipeline_lib.seeding import derive_seed  # noqa: E402
from tasks.runtime.engines import Engines  # noqa: E402
from tasks.runtime.policies import base_policy  # noqa: E402
from tasks.runtime.prompts import prompt_codec  # noqa: E402

BACKENDS = ("vllm", "transformers")
TURNS: dict[str, Callable[[int], float]] = {}  # of the side that this process is


def open_side(name: str, config: PipelineConfig, prompts: list[list[int]]) -> None:
    """Opens an engine in a process of its own: two of vLLM's in one process share what moves their caches."""
    TURNS["mine"] = plain_generate(config, prompts) if name == "generate" else through(name, config, prompts)


def take_turn(index: int) -> float:
    """Answers every prompt; returns the tokens sampled."""
    return TURNS["mine"](index)


def plain_generate(config: PipelineConfig, prompts: list[list[int]]) -> Callable[[int], float]:
    """vLLM opened as its documentation does."""
    vllm, policy, search = import_vllm(config.policy), config.policy, config.search
    with threads_stay_settable(policy):
        engine = vllm.LLM(
            model=str(model_path(policy.model)),
            dtype=policy.dtype,
            max_model_len=policy.max_context_tokens,
            max_num_seqs=policy.max_batch,
            gpu_memory_utilization=0.25,  # of whatever memory there is: three engines share it
        )

    def turn(_: int) -> float:
        params = vllm.SamplingParams(  # without a seed of their own: on a CPU vLLM 0.32 fails with them here
            max_tokens=search.max_new_tokens,
            temperature=search.temperature,
            top_p=search.top_p,
            top_k=search.top_k,
            min_p=search.min_p,
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return float(sum(len(out.outputs[0].token_ids) for out in engine.generate(asked, params, use_tqdm=False)))

    return turn


def through(backend: str, config: PipelineConfig, prompts: list[list[int]]) -> Callable[[int], float]:
    """The same through one of Coppice's engines."""
    config = apply_overrides(config, [f"policy.backend={backend}"])
    policy = Engines().open(config, base_policy(config), dataset=config.problems.dataset)
    params = sampling_params(config.search, config.search.max_new_tokens)

    def turn(index: int) -> float:
        before = policy.stats.tokens_generated
        sample_all(
            policy,
            [
                SampleRequest(str(number), np.array(prompt, dtype=np.int32), params, derive_seed(index, number))
                for number, prompt in enumerate(prompts)
            ],
        )
        return float(policy.stats.tokens_generated - before)

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="smollm2")
    parser.add_argument("--answers", type=int, default=512, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    arguments = parser.parse_args()
    config = apply_overrides(PRESETS[arguments.preset](), ["policy.stop_after_answer=false", *arguments.overrides])
    codec, problems = prompt_codec(config, config.problems.dataset), training_pool(config)[: arguments.answers]
    prompts = [codec.encode_prompt(problem.question).tolist() for problem in problems]
    works: dict[str, Callable[[int], float]] = {}
    for name in ("generate", *BACKENDS):
        process = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=open_side, initargs=(name, config, prompts)
        )
        works[name] = lambda index, process=process: process.submit(take_turn, index).result()
    in_turns(works, rounds=1)  # warm
    costs = in_turns(works, rounds=arguments.rounds, alternating=True)
    for name in BACKENDS:
        figure = paired_speedup(
            f"{name}.throughput_vs_generate",
            costs[name],
            costs["generate"],
            clock="wall",
            target=None,
            labels=(name, "generate"),
        )
        Console().print(f"{figure.name} {figure.value:.3f} {figure.details}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
