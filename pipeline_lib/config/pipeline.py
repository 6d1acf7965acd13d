"""The whole configuration: one frozen model per stage inside one `PipelineConfig`.

It is the flow's only parameter, the form in the Prefect UI, what ``--set a.b=c`` changes and what
MLflow records. Every field says its unit and where it comes from: "paper" is arXiv 2501.01478 as
far as it is known to us; "our choice" is where it is silent. Where things live (``COPPICE_HOME``,
the tracking URI) is not here but in `Settings`, read from the environment.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline_lib.config.engine_config import ServerConfig, VllmConfig
from pipeline_lib.config.group import ConfigGroup


class ProblemsConfig(ConfigGroup):
    """What is asked, and how much of it."""

    dataset: str = Field(
        "tiny-word",
        description="tiny-word | tiny-algebra | gsm8k | math | file; `file` reads columns question and answer.",
    )
    path: str | None = Field(None, description="Local file or folder for gsm8k, math and file; None asks the hub.")
    num_problems: int = Field(
        2000, ge=1, description="Problems searched per iteration. Paper: about 2,000 per dataset."
    )
    num_validation: int = Field(
        200, ge=1, description="Problems cut from train for the gate; never trained on. Our choice."
    )
    fresh_each_iteration: bool = Field(
        True, description="Draw new problems each iteration, without replacement. Our choice: repeats overfit."
    )
    on_bad_row: Literal["skip", "refuse"] = Field(
        "skip", description="A row with a missing field or an unusable gold is skipped and counted, or stops the run."
    )


class PolicyConfig(ConfigGroup):
    """The model that is sampled and trained, and the engine that samples it."""

    backend: Literal["transformers", "vllm", "server", "scripted"] = Field(
        "transformers",
        description="What samples the policy: this process, by transformers or vLLM, or the servers in policy.server.",
    )
    model: str = Field("tiny", description="Model folder or hub name; `tiny` is the base that comes with Coppice.")
    revision: str | None = Field(None, description="Hub revision of the model.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto | cpu | cuda | cuda:1; auto takes CUDA when there is one.",
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Weights while sampling and training.")
    max_batch: int = Field(128, ge=1, description="Requests that are decoded together.")
    max_context_tokens: int = Field(
        1024, ge=32, description="Prompt and answer together; longer rollouts are truncated."
    )
    num_threads: int = Field(
        1, ge=1, description="Torch threads on the CPU. Measured: 2 on a busy 2-core machine is slower than 1."
    )
    instruction: str | None = Field(
        None, description="Appended to every question; None takes the dataset's own, `` adds nothing."
    )
    vllm: VllmConfig = Field(default_factory=VllmConfig)
    server: ServerConfig = Field(default_factory=ServerConfig)


class SearchConfig(ConfigGroup):
    """Monte Carlo tree search over steps."""

    num_simulations: int = Field(16, ge=1, description="Rollouts per problem: the headline dial. Our choice.")
    num_candidates: int = Field(
        4, ge=1, description="Rollouts drawn at a node before its children are descended into. Our choice."
    )
    c_uct: float = Field(1.0, ge=0, description="Exploration constant of UCB1. Our choice; rewards lie in [0, 1].")
    parallel_simulations: int = Field(
        4, ge=1, description="Simulations of one tree in flight under virtual loss. Our choice: fills the engine."
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature of the rollouts. Our choice.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus mass of the rollouts. Our choice: 1 keeps the policy's own distribution."
    )
    max_depth: int = Field(32, ge=1, description="Steps on a path; a rollout with more is TRUNCATED.")
    max_new_tokens: int = Field(256, ge=1, description="Tokens of one rollout; one that reaches it is TRUNCATED.")
    max_step_tokens: int = Field(256, ge=1, description="Tokens of one step; a rollout with a longer one is TRUNCATED.")
    max_tokens_per_problem: int | None = Field(
        None, ge=1, description="Budget of sampled tokens per tree; None sets no limit."
    )
    markdown_steps: bool = Field(
        False,
        description="Headings, `Step 2:`, lines that announce, and formulas stay with what they lead to. Our choice: "
        "False, a step a line; instruction-tuned models need True.",
    )
    num_shards: int = Field(4, ge=1, description="Prefect tasks into which one iteration's search is cut.")


class ScoreConfig(ConfigGroup):
    """Equation 1: from visits and value sums to scores, and from scores to weights."""

    baseline: Literal["others", "group"] = Field(
        "others", description="Siblings without or with the step itself. Paper: both readings possible."
    )
    scaling: Literal["linear", "sqrt", "none"] = Field(
        "linear", description="f(N) that multiplies the difference. Paper: by visit count."
    )
    min_visits: int = Field(
        1, ge=1, description="Steps visited less often score 0. Our choice: single visits are noise."
    )


class AuditConfig(ConfigGroup):
    """Thresholds below which an iteration does not train."""

    min_informative_share: float = Field(
        0.05, ge=0, le=1, description="Share of problems with right and wrong rollouts. Our choice."
    )
    min_variance: float = Field(1e-3, ge=0, description="Variance of the scores over all steps. Our choice.")
    max_unusable_share: float = Field(
        0.9, ge=0, le=1, description="Unparsed and truncated rollouts over all. Our choice."
    )
    remedy: bool = Field(
        True, description="Search uninformative problems once more with twice the simulations before stopping."
    )
    histogram_bins: int = Field(41, ge=3, description="Bins of the score histogram.")


class TrainConfig(ConfigGroup):
    """Score-weighted training against the previous iteration."""

    objective: Literal["relative-correctness", "rft", "step-dpo"] = Field(
        "relative-correctness", description="Paper's own, and its two baselines from the same trees."
    )
    full_finetuning: bool = Field(
        False, description="Train all weights instead of LoRA. Paper leaves the comparison open."
    )
    lora_rank: int = Field(16, ge=1, description="Rank of the adapter. Our choice.")
    lora_alpha: int = Field(32, ge=1, description="Scale of the adapter. Our choice: twice the rank.")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW peak rate. Our choice for LoRA on a small model.")
    warmup_updates: int = Field(5, ge=0, description="Updates of linear warm-up. Our choice.")
    num_epochs: int = Field(2, ge=1, description="Passes over the scored trees. Our choice.")
    tokens_per_update: int = Field(4096, ge=64, description="Packed tokens behind one optimizer update. Our choice.")
    tokens_per_microbatch: int = Field(4096, ge=64, description="Packed tokens in one forward pass; bounds memory.")
    gradient_checkpointing: bool = Field(
        False, description="Keep each layer's input alone and compute the rest again: less memory, a third more time."
    )
    kl_beta: float = Field(0.1, ge=0, description="Weight of KL(current || previous iteration). Our choice.")
    kl_alarm: float = Field(
        1.0, gt=0, description="Mean KL in nats per scored token that ends training early. Our choice."
    )
    negative_clip: float = Field(
        0.1,
        ge=0,
        description="Weights below -negative_clip are raised to it; 0 keeps positives only. Our choice.",
    )
    dpo_beta: float = Field(0.1, gt=0, description="Inverse temperature of step-dpo.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay.")
    checkpoint_every: int = Field(
        20, ge=1, description="Updates between checkpoints; a killed run resumes from the last."
    )
    num_processes: int = Field(
        1, ge=1, description="Processes that train together, one per GPU; 1 trains in the stage's own process."
    )
    shard_weights: bool = Field(
        False,
        description="Spread the weights over the processes (FSDP2), for models that do not fit one GPU; False: each "
        "process holds all of them.",
    )


class EvaluationConfig(ConfigGroup):
    """What is measured after every iteration."""

    datasets: tuple[str, ...] = Field(
        ("tiny-word", "tiny-algebra"),
        description="Test sets, all reported each iteration: `name` or `name=path`; one, or a JSON list.",
    )
    num_problems: int = Field(500, ge=1, description="Problems of each test set.")
    num_samples: int = Field(0, ge=0, description="Samples per problem for maj@k and pass@k; 0 leaves them out.")
    sampled_problems: int = Field(100, ge=1, description="Problems of each test set that are sampled.")
    max_new_tokens: int = Field(256, ge=1, description="Tokens of one answer.")

    @field_validator("datasets", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("datasets")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [dataset.partition("=")[0] for dataset in value]
        if len(set(names)) < len(names):
            raise ValueError("a dataset stands twice; reports tell datasets apart by name")
        return value


class GateConfig(ConfigGroup):
    """When to stop: validation accuracy, never test."""

    patience: int = Field(1, ge=1, description="Iterations without a gain before stopping. Our choice.")
    min_gain: float = Field(
        0.0, ge=0, le=1, description="Validation accuracy that counts as a gain, in [0, 1]. Our choice."
    )
    require_interval: bool = Field(
        False, description="The gain must also lie outside the best iteration's 95 % interval."
    )


class GradingConfig(ConfigGroup):
    """What counts as equal where opinions differ; None takes the dataset's convention, else the default."""

    any_order: bool | None = Field(None, description="`1, 2` is `2, 1`; default true. Tuples are always ordered.")
    percent: Literal["either", "fraction", "unit"] | None = Field(
        None, description="`5%` is 0.05 (fraction), 5 (unit) or both (either, the default; gsm8k: unit)."
    )
    ignore_units: bool | None = Field(None, description="`5 cm` is 5; default true. `5 cm` is never `5 m`.")
    rounded: bool | None = Field(
        None, description="A decimal with two or more digits after its point is what rounds to it; default false."
    )
    mixed_numbers: bool | None = Field(None, description="`1 1/2` is 3/2; default true.")
    last_number: bool | None = Field(
        None, description="The last number of a text that announces no answer is its answer; default false."
    )


class RayConfig(ConfigGroup):
    """What each shard of a search gets when Ray runs it; no result depends on it."""

    cpus_per_shard: float = Field(1.0, gt=0, description="CPU cores that a shard reserves.")
    gpus_per_shard: float = Field(
        0.0,
        ge=0,
        description="GPUs that a shard reserves; 0.5 puts two on one. More than 1: whole numbers only.",
    )
    max_retries: int = Field(
        3, ge=0, description="Starts again of a shard whose worker or machine died; finished problems are kept."
    )


class PipelineConfig(ConfigGroup):
    """Everything a run depends on."""

    preset: str = Field("tiny", description="Name of the preset this configuration came from.")
    seed: int = Field(0, ge=0, description="Seed of the whole run.")
    num_iterations: int = Field(3, ge=1, description="Iterations at most. Paper: 2 to 4.")
    grader: str = Field(
        "math",
        pattern=r"^(math|[\w.]+:\w+)$",
        description="What grades: math, or your own `my_package.my_module:verify`, called in worker processes as "
        "verify(prediction: str, gold: str) -> bool. Results are kept under its name: rename it when it changes.",
    )
    problems: ProblemsConfig = Field(default_factory=ProblemsConfig)
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    audit: AuditConfig = Field(default_factory=AuditConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    gate: GateConfig = Field(default_factory=GateConfig)
    grading: GradingConfig = Field(default_factory=GradingConfig)
    runner: Literal["local", "ray"] = Field(
        "local", description="Where the shards of a search run: here one after another, or each as a Ray task."
    )
    ray: RayConfig = Field(default_factory=RayConfig)
