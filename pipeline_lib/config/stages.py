"""Groups of `PipelineConfig` that belong to one stage each; see `pipeline` for what their descriptions say."""

from __future__ import annotations

from typing import Any, Literal

import regex
from pydantic import Field, ValidationInfo, field_validator

from pipeline_lib.config.group import ConfigGroup
from pipeline_lib.config.named_set import NamedSet

STEP_DELIMITERS = ("line", "blank_line", "sentence")
GRADER_NAME = r"^(math|[\w.]+:\w+)$"


class ColumnsConfig(ConfigGroup):
    """Where the rows of your files keep what is read, in place of a dataset's own columns."""

    question: str | None = Field(
        None,
        description="Column of the question; a dotted path leads into nested values and lists: prompt.0.content. None "
        "takes the dataset's own, as do rows without it.",
    )
    answer: str | None = Field(
        None,
        description="Column of the answer, or of the solution that ends with it: reward_model.ground_truth. None takes "
        "the dataset's own, as do rows without it.",
    )


class ProblemsConfig(ConfigGroup):
    """What is asked, and how much of it."""

    dataset: str = Field(
        "tiny-word",
        description="What is trained on. tiny-word | tiny-algebra | tiny-arithmetic (also @2, @3 … for larger numbers) "
        "| gsm8k | math | file, which reads columns question and answer. Paper: GSM8K and MATH.",
    )
    path: str | None = Field(
        None,
        description="Local file or folder for gsm8k, math and file, or hub:owner/name; None takes the dataset's own "
        "place on the hub.",
    )
    num_problems: int = Field(
        2000, ge=1, description="Problems searched per iteration. Paper: about 2,000 per dataset."
    )
    columns: ColumnsConfig = Field(
        default_factory=ColumnsConfig, json_schema_extra={"before": {"question": None, "answer": None}}
    )
    num_validation: int = Field(
        200,
        ge=1,
        description="Problems held out for the gate, never trained on; cut from train where the dataset has no "
        "validation split. Our choice.",
    )
    validation_seed: int = Field(
        0,
        ge=0,
        description="Seed of the choice of validation problems, apart from the run's. Our choice: runs of other seeds "
        "are measured on the same problems, so promotion can compare them.",
    )
    validation_path: str | None = Field(
        None,
        description="Local file or folder, or hub:owner/name, of a validation set of your own. None takes what is "
        "called validation, valid or dev beside the train split, and cuts the set from train where there is none.",
    )
    fresh_each_iteration: bool = Field(
        True,
        description="Draw new problems each iteration, without replacement while they last; False searches those of "
        "iteration 1 again. Our choice: repeats overfit.",
    )
    curriculum: Literal["uniform", "informative"] = Field(
        "uniform",
        json_schema_extra={"before": "uniform"},
        description="From iteration 2 on: draw all problems alike, or half of them from those that earlier iterations "
        "solved now and then, the nearest to half the time first, and the rest from groups (level, subject, number of "
        "steps) whose problems were like that. Our choice: uniform; repeats overfit.",
    )
    on_bad_row: Literal["skip", "refuse"] = Field(
        "skip",
        description="A row with a missing field or an unusable gold answer is skipped and counted, or stops the run. "
        "Our choice.",
    )


class SearchConfig(ConfigGroup):
    """Monte Carlo tree search over steps."""

    num_simulations: int = Field(16, ge=1, description="Rollouts per problem: the headline setting. Our choice.")
    num_candidates: int = Field(
        4, ge=1, description="Rollouts that start at a node before its children are descended into. Our choice."
    )
    c_uct: float = Field(
        1.0,
        ge=0,
        description="Exploration constant of UCB1, which selection=ucb alone reads. Our choice; rewards lie in [0, 1].",
    )
    selection: Literal["ucb", "frontier", "entropy"] = Field(
        "ucb",
        json_schema_extra={"before": "ucb"},
        description="Where the next rollout starts: ucb descends from the root by UCB1; frontier takes, of the whole "
        "tree, the open node with less than num_candidates rollouts whose parent is worth most and least certain, "
        "after DeepSearch; entropy the one after which the sampled steps were least probable, token by token, after "
        "TreeRL. Paper: UCB.",
    )
    stop_after_equal: int | None = Field(
        None,
        ge=2,
        json_schema_extra={"before": None},
        description="A tree whose first so many rollouts are all right, or all wrong, starts no more: it would hardly "
        "teach. The first so many are waited for. None: every tree gets its whole budget. Our choice.",
    )
    spend_saved: Literal["drop", "undecided"] = Field(
        "drop",
        json_schema_extra={"before": "drop"},
        description="What becomes of the simulations that stop_after_equal saves: dropped, or shared out evenly among "
        "the undecided trees, in a second pass once all shards are done, so that it is the same for any number of "
        "them. Our choice.",
    )
    parallel_simulations: int = Field(
        4, ge=1, description="Simulations of one tree in flight under virtual loss. Our choice: fills the engine."
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature of the rollouts. Our choice.")
    temperature_rise: float = Field(
        0.0,
        ge=0,
        json_schema_extra={"before": 0.0},
        description="Added to the temperature with every iteration after the first, up to a temperature of 1: a policy "
        "that has grown sure of itself goes on exploring. Our choice: none.",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus mass of the rollouts. Our choice: 1 keeps the policy's own distribution."
    )
    top_k: int = Field(
        0,
        ge=0,
        json_schema_extra={"before": 0},
        description="Tokens of the rollouts are drawn from so many of the most probable ones; 0 keeps all. Our choice.",
    )
    min_p: float = Field(
        0.0,
        ge=0,
        le=1,
        json_schema_extra={"before": 0.0},
        description="Tokens of the rollouts are drawn from those at least so probable, in units of the most probable "
        "one; 0 keeps all. Our choice.",
    )
    shot_levels: tuple[tuple[str, ...], ...] = Field(
        (),
        json_schema_extra={"before": []},
        description="Sets of worked examples, each by their levels, as policy.shot_levels: rollouts are sampled behind "
        "each set in turn, and trained on behind the policy's own prompt, with which evaluations ask too. For models "
        "that copy the form of their examples and so never try another. Our choice: none.",
    )
    max_depth: int = Field(32, ge=1, description="Steps on a path; a rollout with more is cut off. Our choice.")
    max_new_tokens: int = Field(
        256, ge=1, description="Tokens of all steps of a rollout; one that reaches it is cut off. Our choice."
    )
    max_step_tokens: int = Field(
        256, ge=1, description="Tokens of one step; a rollout with a longer one is cut off. Our choice."
    )
    max_tokens_per_problem: int | None = Field(
        None,
        ge=1,
        description="Sampled tokens of a tree after which no simulation starts; None sets no limit. Our choice.",
    )
    step_delimiter: str = Field(
        "line",
        min_length=1,
        json_schema_extra={"before": "line"},
        description="What ends a step: line | blank_line | sentence (a line's end too), or a regular expression of "
        "your own, such as `;\\s`, whose match the step ends with. Our choice: line, which instructions ask for.",
    )
    markdown_steps: bool = Field(
        False,
        description="Headings, `Step 2:`, lines that announce, and formulas, code and tables stay with what they lead "
        "to. Our choice: False, a step ends wherever the delimiter does; instruction-tuned models need True.",
    )
    num_shards: int = Field(4, ge=1, description="Prefect tasks into which one iteration's search is cut. Our choice.")

    @property
    def spends_saved(self) -> bool:
        """Whether undecided trees get what stopped ones leave: a second pass over an iteration's trees."""
        return self.stop_after_equal is not None and self.spend_saved == "undecided"

    def in_iteration(self, iteration: int) -> SearchConfig:
        """What an iteration, counted from 1, is searched with: the temperature as far as it has risen by then."""
        risen = min(1.0, self.temperature + self.temperature_rise * (iteration - 1))
        temperature = max(self.temperature, round(risen, 6))
        return self.model_copy(update={"temperature": temperature, "temperature_rise": 0.0})

    @field_validator("max_tokens_per_problem")
    @classmethod
    def _knows_what_is_saved(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("spend_saved") == "undecided":
            raise ValueError("limits tokens, and spend_saved=undecided shares out simulations; set one of them")
        return value

    @field_validator("step_delimiter")
    @classmethod
    def _ends_something(cls, value: str) -> str:
        if value in STEP_DELIMITERS:
            return value
        names = " | ".join(STEP_DELIMITERS)
        if value.isidentifier():  # a name with a slip in it would be looked for in the text, and hardly be found
            raise ValueError(f"is none of {names}; as an expression of your own write it (?:{value})")
        try:
            matches_nothing = regex.search(value, "") is not None
        except regex.error as error:
            raise ValueError(f"is none of {names}, and no regular expression: {error}") from None
        if matches_nothing:
            raise ValueError("matches the empty text, so it would end a step everywhere")
        return value


class ScoreConfig(ConfigGroup):
    """Equation 1: from visits and value sums to scores; `train` makes weights of them."""

    baseline: Literal["others", "group", "root"] = Field(
        "others",
        description="What a step is compared with: its siblings, without (others) or with the step itself (group), or "
        "both its parent and the root of its tree (root), after TreeRL. Paper: others is the literal reading.",
    )
    scaling: Literal["linear", "sqrt", "none"] = Field(
        "linear",
        description="f(N) of a step's visits that multiplies the difference. Paper: by visit count; linear is the "
        "literal reading.",
    )
    min_visits: int = Field(
        1,
        ge=1,
        description="Steps with fewer rollouts score 0: they are not trained on (rft alone takes them, it reads no "
        "scores), yet count in their siblings' mean. 1 leaves none out. Our choice.",
    )
    prior_rollouts: float = Field(
        0.0,
        ge=0,
        json_schema_extra={"before": 0.0},
        description="Imagined rollouts that add the baseline's value to a step's own: with k of them its difference is "
        "multiplied by N / (N + k), so that few rollouts say less. 0 takes every rollout at its word. Our choice.",
    )
    chain_credit: bool = Field(
        False,
        json_schema_extra={"before": False},
        description="A step without siblings takes over the score of the step before it, so that the ends of answers "
        "are taught too; else it scores 0 under others and group. Paper: it has no siblings to be compared with.",
    )


class AuditConfig(ConfigGroup):
    """Thresholds below which an iteration does not train."""

    min_informative_share: float = Field(
        0.05, ge=0, le=1, description="Share of problems that have right and wrong rollouts, at least. Our choice."
    )
    min_variance: float = Field(1e-3, ge=0, description="Variance of the scores over all steps, at least. Our choice.")
    max_unusable_share: float = Field(
        0.9, ge=0, le=1, description="Share of unparsed and truncated rollouts, at most. Our choice."
    )
    remedy: bool = Field(
        True,
        description="Before stopping, go on searching the uninformative problems, once, up to twice the simulations "
        "and tokens; only where that can help, so not where answers cannot be graded. Our choice.",
    )
    histogram_bins: int = Field(
        41, ge=3, description="Bins of the score histogram. Our choice: odd, so that one bin holds 0."
    )


class EvaluationConfig(ConfigGroup):
    """What is measured after every iteration."""

    datasets: tuple[str, ...] = Field(
        ("tiny-word", "tiny-algebra"),
        description="Test sets, all reported each iteration: `gsm8k`, `gsm8k=path`, or name:dataset=path, as "
        "`aime:math=path`, under a name of its own; one, or a JSON list. Paper: each dataset also on the other one's "
        "test set.",
    )
    num_problems: int = Field(
        500,
        ge=1,
        description="Problems of each test set, the same ones in every run: of files and hub sets in one fixed random "
        "order, since files are often sorted. Our choice.",
    )
    num_samples: int = Field(
        0, ge=0, description="Samples per problem, n of avg@n, maj@n and pass@k; 0 leaves them out. Our choice."
    )
    pass_k: tuple[int, ...] = Field(
        (),
        json_schema_extra={"before": []},
        description="Each k of pass@k, at most num_samples: one, or a JSON list; the estimate is unbiased and the less "
        "noisy, the more samples there are beyond k. None named: num_samples. Our choice.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        json_schema_extra={"before": 1.0},
        description="Sampling temperature of the samples; accuracy itself is greedy. Our choice: the policy's own "
        "distribution. Models come with one of their own, such as 0.6.",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, json_schema_extra={"before": 1.0}, description="Nucleus mass of the samples. Our choice."
    )
    sampled_problems: int = Field(
        100, ge=1, description="Problems of each set that are sampled, the first ones. Our choice."
    )
    max_new_tokens: int = Field(256, ge=1, description="Tokens of one answer, at most. Our choice.")
    grader: str | None = Field(
        None,
        pattern=GRADER_NAME,
        json_schema_extra={"before": None},
        description="What grades evaluations, named as `grader`; None: what grades the rollouts. For rollouts that a "
        "cheaper or laxer verifier rewards than the one that counts. Our choice.",
    )

    @field_validator("datasets", "pass_k", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, int)) else value

    @field_validator("pass_k")
    @classmethod
    def _as_many_samples(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        num_samples = info.data.get("num_samples", 0)
        if len(set(value)) < len(value) or not all(1 <= k <= num_samples for k in value):
            raise ValueError(f"each pass_k once, from 1 to evaluation.num_samples={num_samples}")
        return value

    @field_validator("datasets")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [named.name for named in map(NamedSet.parse, value)]
        if len(set(names)) < len(names):
            raise ValueError("a name stands twice; reports tell test sets apart by it: NAME:DATASET=PATH gives a name")
        return value

    @property
    def test_sets(self) -> tuple[NamedSet, ...]:
        """`datasets`, read."""
        return tuple(map(NamedSet.parse, self.datasets))


class GateConfig(ConfigGroup):
    """When to stop: validation accuracy, never test."""

    patience: int = Field(1, ge=1, description="Iterations in a row without a gain before stopping. Our choice.")
    min_gain: float = Field(
        0.0,
        ge=0,
        le=1,
        description="By how much validation accuracy, in [0, 1], must exceed that of the last iteration that gained. "
        "Our choice.",
    )
    require_interval: bool = Field(
        False,
        description="The paired 95 % interval of a gain, over the same validation problems, must also lie above 0. Our "
        "choice: False, since patience already tolerates noise.",
    )
    continue_from: Literal["best", "last"] = Field(
        "best",
        description="Whose policy the next iteration searches with, trains from and is held near by the KL: the best "
        "by validation accuracy so far, or the last. Our choice: best, since one that got worse hands its damage on "
        "by its weights and by what it samples.",
    )
