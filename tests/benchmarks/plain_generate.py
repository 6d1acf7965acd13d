"""Tokens per second of both engines beside vLLM's own ``LLM.generate``: the same prompts, sampling and threads.

    .venv-vllm/bin/python tests/benchmarks/plain_generate.py --set policy.dtype=bfloat16     # preset smollm2

Answers end by the model's own tokens or by length alone, since ``generate`` knows no other end; they are not the same
answers, as each draws from its own generator, so rates are compared. Sides take turns, each on an engine of its own,
``generate`` with vLLM's defaults but for dtype, context and rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # so that this folder is `benchmarks`, as in the tests

from benchmarks.measuring import in_turns, paired_speedup  # noqa: E402
from rich.console import Console  # noqa: E402

from deployments.presets import PRESETS  # noqa: E402
from pipeline_lib.config import PipelineConfig, apply_overrides  # noqa: E402
from pipeline_lib.policy.model_folders import model_path  # noqa: E402
from pipeline_lib.policy.protocol import Policy, SampleRequest, sample_all  # noqa: E402
from pipeline_lib.policy.vllm_engine.engine_arguments import import_vllm, threads_stay_settable  # noqa: E402
from pipeline_lib.problems.run_sets import training_pool  # noqa: E402
from pipeline_lib.search import sampling_params  # noqa: E402
from pipeline_lib.seeding import derive_seed  # noqa: E402
from pipeline_lib.types import Int32Array  # noqa: E402
from tasks.runtime.engines import Engines  # noqa: E402
from tasks.runtime.policies import base_policy  # noqa: E402


def plain_generate(config: PipelineConfig, prompts: list[Int32Array]) -> Callable[[int], float]:
    """Opens vLLM as its documentation does; a turn answers every prompt and returns the tokens sampled."""
    vllm, policy, search = import_vllm(config.policy), config.policy, config.search
    with threads_stay_settable(policy):
        engine = vllm.LLM(
            model=str(model_path(policy.model)),
            dtype=policy.dtype,
            max_model_len=policy.max_context_tokens,
            max_num_seqs=policy.max_batch,
        )

    def turn(index: int) -> float:
        params = [
            vllm.SamplingParams(
                max_tokens=search.max_new_tokens,
                temperature=search.temperature,
                top_p=search.top_p,
                top_k=search.top_k,
                min_p=search.min_p,
                seed=derive_seed(index, number) % 2**31,
            )
            for number in range(len(prompts))
        ]
        asked = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        return float(sum(len(out.outputs[0].token_ids) for out in engine.generate(asked, params, use_tqdm=False)))

    return turn


def through(policy: Policy, config: PipelineConfig, prompts: list[Int32Array]) -> Callable[[int], float]:
    """The same through one of Coppice's engines."""
    params = sampling_params(config.search, config.search.max_new_tokens)

    def turn(index: int) -> float:
        before = policy.stats.tokens_generated
        requests = [SampleRequest(f"{i}", prompt, params, derive_seed(index, i)) for i, prompt in enumerate(prompts)]
        sample_all(policy, requests)
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
    problems = list(training_pool(config)[: arguments.answers])
    backends = {name: apply_overrides(config, [f"policy.backend={name}"]) for name in ("vllm", "transformers")}
    policies = {
        name: Engines().open(each, base_policy(each), dataset=config.problems.dataset)
        for name, each in backends.items()
    }
    codec = policies["vllm"].codec
    prompts = [codec.encode_prompt(each.question) for each in islice(cycle(problems), arguments.answers)]
    works = {"generate": plain_generate(config, prompts)}
    works |= {name: through(policy, config, prompts) for name, policy in policies.items()}
    in_turns(works, rounds=1)  # warm
    costs = in_turns(works, rounds=arguments.rounds, alternating=True)
    for name in backends:
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
