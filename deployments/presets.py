"""Presets: typed functions that return a whole configuration.

They change on another schedule than the science: every number that differs from the default has
its reason here, and what was tried and did not help is in tests/benchmarks/LOG.md.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline_lib.config import (
    EvaluationConfig,
    GateConfig,
    PipelineConfig,
    PolicyConfig,
    ProblemsConfig,
    ScoreConfig,
    SearchConfig,
    TrainConfig,
)


def tiny() -> PipelineConfig:
    """The embedded default: the committed base, ``tiny-word``, minutes on two CPU cores.

    Chosen on the validation split with seed 0; tests/benchmarks/LOG.md has the figures of what was tried.

    1. ``score.scaling=sqrt``: the best of what was tried; ``linear`` was tried with 2 epochs at twice this rate and
       with 3 at four times it, not with these very numbers.
    2. ``train.value_weight=1`` at a rate of 5e-4: of five tries what validation preferred on both families
       (deployments/results/tiny). Scores alone leave a third of the problems out, those that are always right.
       ``train.negative_clip`` stays at 0.1: signed scores without a clip push likelihood down without bound, see
       `tiny_literal`; 0.5 let a policy fall from the second iteration on.
    3. 1,024 packed tokens a forward pass: longer ones leave the processor's cache, and train 0.9 and 0.7 times as fast.
    4. One shard: 400 problems are a minute's work, and every shard ends with an engine that runs dry.
    5. ``gate.patience=2``: one validation set of 300 has an interval of ±5.6 points, so a single
       iteration without a gain says little.
    """
    return PipelineConfig(
        preset="tiny",
        num_iterations=3,
        problems=ProblemsConfig(dataset="tiny-word", num_problems=400, num_validation=300),
        policy=PolicyConfig(model="tiny", max_batch=128, max_context_tokens=1024),
        search=SearchConfig(num_simulations=16, num_candidates=4, max_new_tokens=128, num_shards=1),
        score=ScoreConfig(scaling="sqrt"),
        train=TrainConfig(
            learning_rate=5e-4, value_weight=1.0, num_epochs=3, tokens_per_update=4096, tokens_per_microbatch=1024
        ),
        evaluation=EvaluationConfig(num_problems=500, num_samples=4, sampled_problems=50, max_new_tokens=128),
        gate=GateConfig(patience=2),
    )


def tiny_literal() -> PipelineConfig:
    """As `tiny`, in the paper's literal reading: what the other choices are measured against.

    Scores against the other siblings, times visits; signed weights without a clip; a KL of 0.1 to the policy before.
    The strength of the KL is our choice, the paper's is not known to us. It stays near its base, 48.4 %: 51.6, 52.4 and
    49.4 % after its iterations with seed 0, where `tiny` comes to 77.6; at twice this rate it fell below it at once.
    """
    config = tiny()
    score = config.score.model_copy(update={"baseline": "others", "scaling": "linear"})
    train = config.train.model_copy(update={"negative_clip": None, "value_weight": 0.0, "kl_beta": 0.1})
    return config.model_copy(update={"preset": "tiny-literal", "score": score, "train": train})


def smollm2() -> PipelineConfig:
    """A real language model on two CPU cores: SmolLM2-135M-Instruct learns one- and two-step word problems.

    The model comes as a package, so no hub is asked. Run so through vLLM, in bfloat16; tests/benchmarks/LOG.md has what
    that came to and what else was tried.

    1. ``search.temperature=0.6``: at 1 the base gets 10 of 1,920 rollouts right, too few to learn from. ``min_p=0.1``
       gets as many right as ``top_p=0.9`` did, and vLLM searches 1.6 times as fast: it need not sort 49,152 tokens.
    2. ``policy.num_shots=4``: without worked examples half of its answers never end, and one takes 50 tokens; with them
       all end, after 15. ``stop_after_answer`` for what still runs on. Asked for "the calculation" it made one, of two
       steps too. ``search.shot_levels``: behind these examples it never takes a second step; behind three of two steps
       it does, sometimes rightly, and so it learns to: 10 % of two-step problems after an iteration, for 1 % without.
    3. ``train.objective=rft``: with a tenth of the rollouts right, what is missing is the habit of right ones. A rate
       of 1e-3 that falls to 0; one that stays there undoes what it taught. Many problems with few rollouts each: to
       learn from a problem, one right answer is enough. ``kl_beta=0``: a third of the training's time went into a KL
       that rft only reports.
    4. 6,144 tokens an update, 16 problems with their worked examples; these are the same in all prompts, so each of its
       one or two forward passes computes them once. With 4 problems an update, of whose 560 tokens 300 are examples, a
       training took 7 minutes for 4.
    5. Two threads: 96 greedy answers took 49 s, and 74 s on one. Processors that compute in bfloat16 (AVX512_BF16, AMX)
       train in ``policy.dtype=bfloat16`` 1.6 times as fast.
    6. No samples beside the greedy answers and one test set: more would make the evaluations longer than the searches.
       Transfer is measured by ``coppice evaluate``, before and after.
    """
    return PipelineConfig(
        preset="smollm2",
        num_iterations=8,
        problems=ProblemsConfig(dataset="tiny-arithmetic", num_problems=800, num_validation=500),
        policy=PolicyConfig(
            model="smollm2",
            max_batch=128,
            max_context_tokens=576,
            num_threads=2,
            stop_after_answer=True,
            num_shots=4,
            shot_levels=("2", "1", "3", "3"),
            instruction="Give one calculation per line, then '#### ' and the answer.",
        ),
        search=SearchConfig(
            num_simulations=6,
            temperature=0.6,
            min_p=0.1,
            shot_levels=(("2", "1", "3", "3"), ("3", "3", "3")),
            max_new_tokens=64,
            num_shards=1,
        ),
        score=ScoreConfig(scaling="sqrt"),
        train=TrainConfig(
            objective="rft",
            learning_rate=1e-3,
            learning_rate_schedule="linear",
            num_epochs=2,
            kl_beta=0.0,
            tokens_per_update=6144,
            tokens_per_microbatch=1536,
        ),
        evaluation=EvaluationConfig(datasets=("tiny-arithmetic",), num_problems=500, num_samples=0, max_new_tokens=64),
        gate=GateConfig(patience=2),
    )


def gsm8k() -> PipelineConfig:
    """GSM8K at the paper's size, for an 8B-class instruct model in bfloat16 on a GPU of 80 GB.

    Not run at that size yet. Where each number comes from:

    1. 2,000 problems an iteration and 4 iterations are the paper's; 32 rollouts a problem are our choice.
    2. The model is a placeholder that anybody may download; ``--model`` names yours.
    3. ``search.markdown_steps``: instruct models write headings, numbered steps and formulas on lines of their own. 32
       steps and 512 tokens are room for such an answer, not for a model that thinks first: see `for_thinking`.
    4. 16 shards: a shard that fails repeats 125 problems at most, and 8 GPUs have two each.
    5. ``train.learning_rate`` is a common one for LoRA at this size; what is right for the tiny base is not.
       ``train.value_weight=1`` as there: the only families on which it was compared.
    6. MATH's test set is measured beside GSM8K's each iteration, so transfer shows.
    """
    return PipelineConfig(
        preset="gsm8k",
        num_iterations=4,
        problems=ProblemsConfig(dataset="gsm8k", num_problems=2000, num_validation=500),
        policy=PolicyConfig(
            backend="vllm",
            model="Qwen/Qwen2.5-7B-Instruct",
            dtype="bfloat16",
            max_batch=256,
            max_context_tokens=2048,
        ),
        search=SearchConfig(num_simulations=32, max_new_tokens=512, num_shards=16, markdown_steps=True),
        score=ScoreConfig(scaling="sqrt"),
        train=TrainConfig(learning_rate=5e-5, value_weight=1.0, num_epochs=1, tokens_per_update=32768),
        evaluation=EvaluationConfig(datasets=("gsm8k", "math"), num_problems=1319, max_new_tokens=1024),
        gate=GateConfig(patience=2),
    )


def math() -> PipelineConfig:
    """As `gsm8k`, for MATH, with room for longer solutions; ``problems.path`` names the user's train split.

    Its questions may hold the source of a drawing, so prompts get 3,072 tokens beside an answer of 1,024; our choice.
    """
    config = gsm8k()
    problems = config.problems.model_copy(update={"dataset": "math"})
    search = config.search.model_copy(update={"max_new_tokens": 1024, "max_step_tokens": 512, "max_depth": 48})
    evaluation = config.evaluation.model_copy(update={"datasets": ("math", "gsm8k")})
    policy = config.policy.model_copy(update={"max_context_tokens": 4096})
    changes = {"preset": "math", "policy": policy, "problems": problems, "search": search, "evaluation": evaluation}
    return config.model_copy(update=changes)


def for_24_gb(config: PipelineConfig) -> PipelineConfig:
    """The same run with a 1.5B model on one GPU of 24 GB: fewer rows and packed tokens at a time; not measured yet."""
    policy = config.policy.model_copy(update={"model": "Qwen/Qwen2.5-1.5B-Instruct", "max_batch": 128})
    train = config.train.model_copy(update={"tokens_per_microbatch": 2048})
    search = config.search.model_copy(update={"num_shards": 8})
    changes = {"preset": f"{config.preset}-24gb", "policy": policy, "train": train, "search": search}
    return config.model_copy(update=changes)


def for_thinking(config: PipelineConfig) -> PipelineConfig:
    """The same run with an 8B model that thinks before it answers; not measured yet.

    1. 8,192 tokens an answer: 512 or 1,024 end within the thoughts, and no answer is ever graded. Fewer rollouts, 16,
       and half of the rows pay for that.
    2. Thoughts come in paragraphs, so ``blank_line`` ends a step, and a path may have 256 of them; 32 would cut off
       nearly all.
    3. Temperature 0.6, ``top_p=0.95`` and ``top_k=20`` are what the model's own card asks for. It warns of greedy
       answers, so four samples stand beside them.
    4. The instruction asks for a box and no more: such models do not follow one about lines.
    """
    search = config.search.model_copy(
        update={
            "num_simulations": 16,
            "temperature": 0.6,
            "top_p": 0.95,
            "top_k": 20,
            "step_delimiter": "blank_line",
            "max_depth": 256,
            "max_new_tokens": 8192,
            "max_step_tokens": 2048,
        }
    )
    policy = config.policy.model_copy(
        update={
            "model": "Qwen/Qwen3-8B",
            "instruction": "Reason step by step, and put the final answer within \\boxed{}.",
            "max_batch": 128,
            "max_context_tokens": 12288,
        }
    )
    train = config.train.model_copy(update={"tokens_per_update": 131072, "tokens_per_microbatch": 16384})
    evaluation = config.evaluation.model_copy(
        update={"max_new_tokens": 8192, "num_samples": 4, "temperature": 0.6, "top_p": 0.95}
    )
    changes = {"policy": policy, "search": search, "train": train, "evaluation": evaluation}
    return config.model_copy(update={"preset": f"{config.preset}-thinking", **changes})


PRESETS: dict[str, Callable[[], PipelineConfig]] = {
    "tiny": tiny,
    "tiny-literal": tiny_literal,
    "smollm2": smollm2,
    "gsm8k": gsm8k,
    "math": math,
    "gsm8k-24gb": lambda: for_24_gb(gsm8k()),
    "math-24gb": lambda: for_24_gb(math()),
    "gsm8k-thinking": lambda: for_thinking(gsm8k()),
    "math-thinking": lambda: for_thinking(math()),
}


def preset_names() -> list[str]:
    """Names that ``--preset`` knows."""
    return list(PRESETS)


def preset(name: str) -> PipelineConfig:
    """The configuration of a preset; a KeyError for a name not in `preset_names`."""
    return PRESETS[name]()
