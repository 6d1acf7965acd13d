"""`coppice check`: everything that can be known about a run before it costs a GPU hour.

One idea: a list of questions in the order in which a run would stumble over them. Each is answered with one line; one
that needs what another could not find is not asked.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deployments.errors import describe_error
from deployments.preflight.rehearsal import Rehearsal, closed_engines, rehearse
from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.grading import Grade, extract_answer
from pipeline_lib.policy.model_folders import model_folder
from pipeline_lib.policy.protocol import Codec
from pipeline_lib.problems.sources import ProblemPool, load_problems
from pipeline_lib.tracking.outage import without_password
from pipeline_lib.types import Problem

MAX_PROMPTS = 2000  # prompts measured, and golds graded, of each dataset
OTHER_ANSWER = "#### 7"  # compared with every gold: one that cannot be read is told from one that differs
GIB = 2**30
COPIES = 2  # of what a run keeps: in the store, and as MLflow's artifacts

Verdict = Literal["ok", "problem", "not asked"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of the check."""

    question: str
    verdict: Verdict
    text: str


@dataclass(slots=True)
class Known:
    """What has been found out so far."""

    pools: dict[str, ProblemPool] = field(default_factory=dict)
    codec: Codec | None = None
    rehearsal: Rehearsal | None = None

    @property
    def training(self) -> ProblemPool | None:
        return self.pools.get("training")


Question = Callable[[PipelineConfig, Settings, Known], str]


def check(config: PipelineConfig, settings: Settings) -> Iterator[Answer]:
    """The answers, each as soon as it is known."""
    known = Known()
    for question, needs, ask in QUESTIONS:
        missing = [need for need in needs if not getattr(known, need)]
        if missing:
            yield Answer(question, "not asked", f"needs the {missing[0]}")
            continue
        try:
            yield Answer(question, "ok", ask(config, settings, known))
        except Exception as error:  # whatever goes wrong here would have gone wrong in the run
            yield Answer(question, "problem", describe_error(error)[0].removeprefix("coppice: "))


def ask_problems(config: PipelineConfig, settings: Settings, known: Known) -> str:
    """Every dataset can be read, and holds what an iteration draws."""
    problems = config.problems
    wanted = {"training": (problems.dataset, "train", problems.path)}
    for name in config.evaluation.datasets:
        dataset, _, path = name.partition("=")
        wanted[dataset] = (dataset, "test", path or None)
    for key, (dataset, split, path) in wanted.items():
        known.pools[key] = load_problems(
            dataset, split, path=path, on_bad_row=problems.on_bad_row, extract_gold=extract_answer
        )
    pool = known.pools["training"]
    if len(pool) <= problems.num_validation and pool.validation is None:
        known.pools.clear()
        raise ConfigError(
            f"{pool.name}: {len(pool)} problems, of which problems.num_validation={problems.num_validation} are held "
            "out; none is left to train on"
        )
    return "; ".join(_count(pool) for pool in known.pools.values())


def ask_golds(config: PipelineConfig, settings: Settings, known: Known) -> str:
    """Every gold is something that an answer can be compared with."""
    from tasks.runtime.graders import open_grader

    if config.grader != "math":
        return f"not tried: {config.grader} decides what an answer looks like"
    counts = []
    for pool in known.pools.values():
        some = pool[:MAX_PROMPTS]
        with open_grader(config, some[0].dataset) as grader:
            for problem in some:
                grader.submit(problem.problem_id, OTHER_ANSWER, problem.answer)
            grades: dict[str, Grade] = {}
            while grader.num_in_flight:
                grades |= dict(grader.poll(block=True))
        bad = [problem for problem in some if grades[problem.problem_id] in (Grade.UNPARSED, Grade.TIMEOUT)]
        if len(bad) == len(some):
            raise ConfigError(f"{pool.name}: no gold can be graded; the first: {bad[0].answer!r}")
        first = f", {len(bad)} cannot be graded ({bad[0].problem_id}: {bad[0].answer[:40]!r})" if bad else ""
        counts.append(f"{pool.name}: {len(some):,} tried{first}")
    return "; ".join(counts)


def ask_prompts(config: PipelineConfig, settings: Settings, known: Known) -> str:
    """The tokenizer loads, has a template, and prompts leave room for an answer."""
    from pipeline_lib.policy.tokenizers import load_codec
    from tasks.runtime.engines import instruction_for

    assert known.training is not None
    instruction = instruction_for(config, known.training[0].dataset)
    model = model_folder(config.policy.model, config.policy.revision, weights=False)
    known.codec = codec = load_codec(model, config.policy, instruction)
    some = known.training[:MAX_PROMPTS]
    lengths = [len(codec.encode_prompt(problem.question)) for problem in some]
    longest = max(lengths)
    for name in ("search", "evaluation"):
        room = config.policy.max_context_tokens - getattr(config, name).max_new_tokens
        if longest > room:
            raise ConfigError(
                f"{some[lengths.index(longest)].problem_id}: a prompt of {longest} tokens and {name}.max_new_tokens do "
                f"not fit into policy.max_context_tokens={config.policy.max_context_tokens}; raise it to "
                f"{config.policy.max_context_tokens + longest - room}"
            )
    return f"{sum(lengths) / len(lengths):.0f} tokens on average, {longest} at most, of {len(some):,} tried"


def ask_model(config: PipelineConfig, settings: Settings, known: Known) -> str:
    """The model's layout loads, its context is long enough, and it has the layers that adapters attach to."""
    from transformers import AutoConfig

    from pipeline_lib.training.training_memory import training_memory

    model = model_folder(config.policy.model, config.policy.revision, weights=False)
    try:
        layout = AutoConfig.from_pretrained(model).get_text_config()
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"policy.model={config.policy.model}: cannot read its configuration: {reason}") from None
    longest = getattr(layout, "max_position_embeddings", None)
    if longest is not None and longest < config.policy.max_context_tokens:
        raise ConfigError(
            f"policy.max_context_tokens={config.policy.max_context_tokens}, but the model was made for {longest} tokens"
        )
    trained = training_memory(model, config.train, config.policy.model_copy(update={"device": "cpu"})).num_trained
    kind = "weights" if config.train.full_finetuning else f"weights of a rank-{config.train.lora_rank} adapter"
    return f"{layout.model_type}, {layout.num_hidden_layers} layers; {trained:,} {kind} are trained"


def ask_memory(config: PipelineConfig, settings: Settings, known: Known) -> str:
    """Sampling and training, one after the other, fit into the device's memory."""
    from pipeline_lib.policy.devices import free_memory
    from pipeline_lib.policy.transformers_engine.sampling_memory import sampling_memory
    from pipeline_lib.training.processes.launch import check_processes
    from pipeline_lib.training.training_memory import training_memory

    check_processes(config.train, config.policy)
    model = model_folder(config.policy.model, config.policy.revision, weights=False)
    training = training_memory(model, config.train, config.policy)
    parts = {"training": training.total}
    if config.policy.backend == "transformers":
        parts["sampling"] = sampling_memory(model, config.policy).total
    free, device = free_memory(config.policy.device)
    text = ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in parts.items())
    if max(parts.values()) > free:
        advice = {
            "training": "lower train.tokens_per_microbatch, or set train.gradient_checkpointing, or with several GPUs "
            "train.shard_weights",
            "sampling": "lower policy.max_batch or policy.max_context_tokens",
        }[max(parts, key=lambda name: parts[name])]
        raise ConfigError(f"{text}, but {device} has {free / GIB:.1f} GiB free: {advice}")
    return f"{text}, beside the libraries; {device} has {free / GIB:.1f} GiB free"


def ask_tracking(config: PipelineConfig, settings: Settings, known: Known) -> str:
    """MLflow answers, within seconds instead of the patience of a run."""
    from pipeline_lib.tracking import reach, tracking_uri

    reach(settings)
    return without_password(tracking_uri(settings))


def ask_stages(config: PipelineConfig, settings: Settings, known: Known) -> str:
    """One problem goes through every stage."""
    assert known.training is not None
    with tempfile.TemporaryDirectory() as folder, closed_engines():
        known.rehearsal = done = rehearse(config, first_problem(config, known.training), Path(folder))
    note = "; graded in turns to try training, since chance gave no signal" if done.graded_in_turns else ""
    return (
        f"{done.outcomes}{note}; {done.sampled_per_s:,.0f} tokens/s sampled by a full engine, "
        f"{done.trained_per_s:,.0f} trained"
    )


def ask_cost(config: PipelineConfig, settings: Settings, known: Known) -> str:
    """Tokens, hours and disk of the whole run; two significant digits at best."""
    assert known.rehearsal is not None
    done, problems = known.rehearsal, config.problems.num_problems
    searched = problems * config.search.num_simulations * done.tokens_per_rollout
    pools = [pool for key, pool in known.pools.items() if key != "training"]
    tested = sum(min(config.evaluation.num_problems, len(pool)) for pool in pools)
    sampled = min(config.evaluation.sampled_problems, config.evaluation.num_problems) * config.evaluation.num_samples
    asked = config.problems.num_validation + tested + sampled * len(pools)
    tokens = searched + asked * done.tokens_per_answer
    trained = problems * done.trained_tokens * config.train.num_epochs
    hours = (tokens / done.sampled_per_s + trained / done.trained_per_s) / 3600
    disk = COPIES * (problems * done.tree_bytes + done.policy_bytes) * config.num_iterations
    free = shutil.disk_usage(_existing(settings.home)).free
    text = (
        f"{config.num_iterations} iterations of {tokens / 1e6:,.2g} M tokens and {hours:,.2g} hours, on this machine; "
        f"{disk / GIB:,.2g} GiB of disk, {free / GIB:,.0f} free"
    )
    if disk > free:
        raise ConfigError(f"{text}: make room below {settings.home.resolve()}, or set COPPICE_HOME")
    return text


QUESTIONS: tuple[tuple[str, tuple[str, ...], Question], ...] = (
    ("problems", (), ask_problems),
    ("golds", ("pools",), ask_golds),
    ("model", (), ask_model),
    ("prompts", ("training",), ask_prompts),
    ("memory", (), ask_memory),
    ("tracking", (), ask_tracking),
    ("one problem", ("training", "codec"), ask_stages),
    ("cost", ("rehearsal",), ask_cost),
)


def first_problem(config: PipelineConfig, pool: ProblemPool) -> Problem:
    """The one that is tried: of a typical length."""
    some = sorted(pool[:101], key=lambda problem: len(problem.question))
    return some[len(some) // 2]


def _count(pool: ProblemPool) -> str:
    skipped = f", {len(pool.skipped):,} rows skipped ({pool.skipped[0].reason})" if pool.skipped else ""
    return f"{pool.name}: {len(pool):,}{skipped}"


def _existing(path: Path) -> Path:
    path = path.resolve()
    return path if path.exists() else _existing(path.parent)
