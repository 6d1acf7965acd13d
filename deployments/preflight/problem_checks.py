"""Checks of the data: problems can be read, their gold answers graded, their prompts fit into the context."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.preflight.findings import Findings
from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.grading import Grade, extract_answer
from pipeline_lib.policy.model_folders import model_folder
from pipeline_lib.problems.sources import ProblemPool, load_problems
from pipeline_lib.types import Problem

MAX_PROBLEMS = 2000  # of each dataset, whose prompts are measured and gold answers graded
OTHER_ANSWER = "#### 7"  # compared with every gold answer: tells one that cannot be read from one that differs


def check_problems(config: PipelineConfig, settings: Settings, findings: Findings) -> str:
    """Every dataset can be read, and holds what an iteration draws."""
    problems = config.problems
    sources: dict[str, tuple[str, str, str | None]] = {"training": (problems.dataset, "train", problems.path)}
    for name in config.evaluation.datasets:
        test_set, _, own_path = name.partition("=")
        sources[test_set] = (test_set, "test", own_path or None)
    for key, (dataset, split, path) in sources.items():
        findings.problems[key] = load_problems(
            dataset, split, path=path, on_bad_row=problems.on_bad_row, extract_gold=extract_answer
        )
    pool = findings.problems["training"]
    if len(pool) <= problems.num_validation and pool.validation is None:
        findings.problems.clear()
        raise ConfigError(
            f"{pool.name}: {len(pool)} problems, of which problems.num_validation={problems.num_validation} are held "
            "out; none is left to train on"
        )
    return "; ".join(_describe(pool) for pool in findings.problems.values())


def check_gold_answers(config: PipelineConfig, settings: Settings, findings: Findings) -> str:
    """Every gold answer is something that an answer can be compared with."""
    if config.grader != "math":
        return f"not tried: {config.grader} decides what an answer looks like"
    counts = []
    for pool in findings.problems.values():
        tried = pool[:MAX_PROBLEMS]
        bad = _ungradable(config, tried)
        if len(bad) == len(tried):
            raise ConfigError(f"{pool.name}: no gold answer can be graded; the first: {bad[0].answer!r}")
        first = f", {len(bad)} cannot be graded ({bad[0].problem_id}: {bad[0].answer[:40]!r})" if bad else ""
        counts.append(f"{pool.name}: {len(tried):,} tried{first}")
    return "; ".join(counts)


def check_prompts(config: PipelineConfig, settings: Settings, findings: Findings) -> str:
    """The tokenizer loads, has a template, and prompts leave room for an answer."""
    from pipeline_lib.policy.tokenizers import load_codec
    from tasks.runtime.engines import instruction_for

    assert findings.training_problems is not None  # among the check's needs
    instruction = instruction_for(config, findings.training_problems[0].dataset)
    model = model_folder(config.policy.model, config.policy.revision, weights=False)
    findings.tokenizer = codec = load_codec(model, config.policy, instruction)
    tried = findings.training_problems[:MAX_PROBLEMS]
    lengths = [len(codec.encode_prompt(problem.question)) for problem in tried]
    longest = max(lengths)
    _require_room(config, longest, tried[lengths.index(longest)].problem_id)
    return f"{sum(lengths) / len(lengths):.0f} tokens on average, {longest} at most, of {len(tried):,} tried"


def _describe(pool: ProblemPool) -> str:
    skipped = f", {len(pool.skipped):,} rows skipped ({pool.skipped[0].reason})" if pool.skipped else ""
    return f"{pool.name}: {len(pool):,}{skipped}"


def _ungradable(config: PipelineConfig, problems: Sequence[Problem]) -> list[Problem]:
    """Problems of one dataset whose gold answer the grader cannot read, or not in time."""
    from tasks.runtime.graders import open_grader

    grades: dict[str, Grade] = {}
    with open_grader(config, problems[0].dataset) as grader:
        for problem in problems:
            grader.submit(problem.problem_id, OTHER_ANSWER, problem.answer)
        while grader.num_in_flight:
            grades |= dict(grader.poll(block=True))
    return [problem for problem in problems if grades[problem.problem_id] in (Grade.UNPARSED, Grade.TIMEOUT)]


def _require_room(config: PipelineConfig, prompt_tokens: int, problem_id: str) -> None:
    """Raises ConfigError where a prompt of that length and the answer to it do not fit into the context."""
    context = config.policy.max_context_tokens
    for name, answer_tokens in (
        ("search.max_new_tokens", config.search.max_new_tokens),
        ("evaluation.max_new_tokens", config.evaluation.max_new_tokens),
    ):
        if prompt_tokens + answer_tokens > context:
            raise ConfigError(
                f"{problem_id}: a prompt of {prompt_tokens} tokens and {name} do not fit into "
                f"policy.max_context_tokens={context}; raise it to {prompt_tokens + answer_tokens}"
            )
