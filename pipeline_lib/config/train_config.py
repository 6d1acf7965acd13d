"""The group of training, and which of its settings have an effect on a result under which others."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline_lib.config.group import ConfigGroup

OWN_KL_BETA = {"relative-correctness": 0.1, "rft": 0.0, "step-dpo": 0.0}
# How the same numbers are computed, up to the order of sums, as on another device; and what a kill repeats.
NEVER_IN_A_RESULT = {
    "checkpoint_every",
    "gradient_checkpointing",
    "num_processes",
    "shard_weights",
    "tokens_per_microbatch",
}


class TrainConfig(ConfigGroup):
    """Score-weighted training against the previous iteration."""

    objective: Literal["relative-correctness", "rft", "step-dpo"] = Field(
        "relative-correctness",
        description="Steps weighted by their scores, after the paper (its literal setting is the preset tiny-literal), "
        "or one of the two that it compares with, from the same trees: rejection sampling (rft), preferences between "
        "siblings (step-dpo).",
    )
    full_finetuning: bool = Field(
        False, description="Train all weights instead of LoRA. Paper leaves the comparison open."
    )
    lora_rank: int = Field(16, ge=1, description="Rank of the adapter. Our choice.")
    lora_alpha: int = Field(
        32, ge=1, description="The adapter's scale is lora_alpha / lora_rank. Our choice: twice the rank."
    )
    lora_scaling: Literal["rank", "sqrt_rank"] = Field(
        "rank",
        json_schema_extra={"before": "rank"},
        description="What lora_alpha is divided by: the rank, or its square root (rsLoRA), under which one learning "
        "rate fits adapters of every rank. Our choice.",
    )
    lora_targets: Literal["all", "attention"] = Field(
        "all",
        json_schema_extra={"before": "all"},
        description="Linear layers that get an adapter: all but the output layer, or those in attention. Our choice.",
    )
    start: Literal["previous", "base"] = Field(
        "previous",
        json_schema_extra={"before": "previous"},
        description="What an iteration trains on from: the policy that searched, or the base each time anew, so that "
        "no iteration's damage is handed on by weights. Paper: the policy before.",
    )
    reference: Literal["previous", "base"] = Field(
        "previous",
        json_schema_extra={"before": "previous"},
        description="What the KL and step-dpo compare with: the policy that searched, or the base in all "
        "iterations. Paper: the policy before.",
    )
    learning_rate: float = Field(
        1e-3, gt=0, description="AdamW's rate after the warm-up. Our choice for LoRA on a small model."
    )
    warmup_updates: int = Field(
        5,
        ge=0,
        description="Updates over which the rate rises linearly, at most: never more than a tenth of those that the "
        "training takes. Our choice: few updates shall teach too.",
    )
    learning_rate_schedule: Literal["constant", "linear"] = Field(
        "constant",
        json_schema_extra={"before": "constant"},
        description="What the rate does after the warm-up: stays, or falls linearly to 0 over all updates. Our choice: "
        "it stays, so that more epochs go on from fewer.",
    )
    replay_iterations: int = Field(
        0,
        ge=0,
        json_schema_extra={"before": 0},
        description="Earlier iterations whose scored trees are trained on again, the latest ones; earlier policies "
        "sampled them. Our choice: 0, each tree once.",
    )
    num_epochs: int = Field(2, ge=1, description="Passes over the scored trees. Our choice.")
    tokens_per_update: int = Field(
        4096,
        ge=64,
        description="Packed tokens behind one optimizer update, at most, each tree's whole beginning counted. Our "
        "choice.",
    )
    tokens_per_microbatch: int = Field(
        4096,
        ge=64,
        description="Packed tokens in one forward pass, at most, a beginning that its trees share counted once; bounds "
        "memory and changes no result. Our choice.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Keep each layer's input alone and compute the rest again: less memory, a third more time."
    )
    kl_beta: float | None = Field(
        None,
        ge=0,
        description="Weight of KL(current || previous iteration) in the loss, per scored token, under any objective. "
        "None takes the objective's own: 0.1 for relative-correctness, none for rft and step-dpo, where the KL is then "
        "measured only. 0 leaves it out, and unmeasured too but with step-dpo: a third less computation. Our choice.",
    )
    kl_on: Literal["scored", "path"] = Field(
        "scored",
        json_schema_extra={"before": "scored"},
        description="Tokens on which the KL is taken: those of scored steps, or all steps on their paths, which else "
        "drift unseen. Without an effect where the loss has no KL, and under rft and step-dpo. Our choice.",
    )
    kl_alarm: float = Field(
        1.0,
        gt=0,
        description="KL in nats per scored token, mean of the last few updates, above which training ends early; "
        "nothing rings where the KL is not measured. Our choice.",
    )
    negative_clip: float | None = Field(
        0.1,
        ge=0,
        description="A score below -negative_clip is raised to that, in units of the mean magnitude of the scores that "
        "are not 0, before scores become weights of mean magnitude 1. 0 keeps positives only; None clips nothing, the "
        "literal reading. relative-correctness alone reads it. Our choice.",
    )
    weighting: Literal["score", "sign", "exp"] = Field(
        "score",
        json_schema_extra={"before": "score"},
        description="What of a score becomes a weight, before the clip: the score itself; sign, 1 or -1; exp, "
        "exp(score / weighting_temperature), never negative and at most 20. Positives alone are negative_clip=0. "
        "relative-correctness alone reads it. Paper: the score.",
    )
    weighting_temperature: float = Field(
        1.0,
        gt=0,
        json_schema_extra={"before": 1.0},
        description="Tau of weighting=exp, which alone reads it, in units of the scores' mean magnitude: the lower, "
        "the more the best steps stand out. Our choice.",
    )
    value_weight: float = Field(
        0.0,
        ge=0,
        json_schema_extra={"before": 0.0},
        description="Weight of a step's value, the share of its rollouts that were right, beside its score, in units "
        "of the weights' mean magnitude: what all solve is taught too, and steps that nothing stands beside. Large, "
        "it is rft by values. relative-correctness alone reads it. Paper: 0, the score alone.",
    )
    soft_clip: float | None = Field(
        None,
        gt=0,
        json_schema_extra={"before": None},
        description="Bounds scores softly, before all else: a score s becomes c * tanh(s / c), c in units of the "
        "scores' mean magnitude. None bounds nothing. relative-correctness alone reads it. After DeepSearch.",
    )
    ratio_clip: float | None = Field(
        None,
        gt=0,
        lt=1,
        json_schema_extra={"before": None},
        description="Epsilon of PPO's clipped surrogate against the policy before, which sampled: a token whose "
        "probability has moved by more than the factor 1 + epsilon, or 1 - epsilon, to where its weight pushes it "
        "pushes no further, so negatives are bounded by form. None: the likelihood itself. relative-correctness alone "
        "reads it. Our choice.",
    )
    dpo_beta: float = Field(
        0.1,
        gt=0,
        description="Beta of step-dpo, which alone reads it: how strongly a pair's log-ratios are told apart. Our "
        "choice.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Norm to which an update's gradient is clipped. Our choice.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay. Our choice.")
    checkpoint_every: int = Field(
        20, ge=1, description="Updates between checkpoints; a killed run resumes from the last. Our choice."
    )
    num_processes: int = Field(
        1, ge=1, description="Processes that train together, one per GPU; 1 trains in the stage's own process."
    )
    shard_weights: bool = Field(
        False,
        description="Spread the weights over the processes (FSDP2), for models that do not fit one GPU; False: each "
        "process holds all of them.",
    )

    @field_validator("ratio_clip")
    @classmethod
    def _compares_with_who_sampled(cls, value: float | None, info: ValidationInfo) -> float | None:
        others = [name for name in ("start", "reference") if info.data.get(name) == "base"]
        others += ["replay_iterations"] if info.data.get("replay_iterations") else []
        if value is not None and others:
            raise ValueError(f"compares with the policy that sampled, which train.{others[0]} makes another one")
        return value

    @property
    def kl_weight(self) -> float:
        """What the loss multiplies the KL by: `kl_beta`, or the objective's own."""
        return OWN_KL_BETA[self.objective] if self.kl_beta is None else self.kl_beta

    @property
    def needs_reference(self) -> bool:
        """True when a loss or the KL on record reads the previous policy; without it a third of the time is saved."""
        return self.kl_beta != 0 or self.objective == "step-dpo" or self.clips_ratio

    @property
    def kl_on_path(self) -> bool:
        """Whether steps without a weight take part in the KL."""
        return self.kl_on == "path" and self.kl_weight > 0 and self.objective == "relative-correctness"

    @property
    def clips_ratio(self) -> bool:
        """Whether the loss is the clipped surrogate."""
        return self.ratio_clip is not None and self.objective == "relative-correctness"

    def without_effect(self) -> set[str]:
        """Names of the settings that no result of this training depends on: in no store key, in no checkpoint's."""
        names = set(NEVER_IN_A_RESULT)
        if self.objective != "relative-correctness":
            names |= {"negative_clip", "weighting", "value_weight", "soft_clip", "ratio_clip"}
        if self.objective != "relative-correctness" or self.weighting != "exp":
            names.add("weighting_temperature")
        if self.objective != "step-dpo":
            names.add("dpo_beta")
        if self.weighting == "sign":
            names.add("soft_clip")
        if self.weighting == "exp":  # never negative
            names.add("negative_clip")
        if not self.kl_on_path:
            names.add("kl_on")
        if not self.needs_reference:
            names |= {"kl_alarm", "reference"}
        if self.full_finetuning:
            names |= {"lora_rank", "lora_alpha", "lora_scaling", "lora_targets"}
        return names | self._as_before()

    def _as_before(self) -> set[str]:
        """Names of later settings that stand as it was done before them: a training of then goes on."""
        named = {name: field.json_schema_extra for name, field in type(self).model_fields.items()}
        later = {
            name: extra["before"] for name, extra in named.items() if isinstance(extra, dict) and "before" in extra
        }
        return {name for name, before in later.items() if getattr(self, name) == before}
