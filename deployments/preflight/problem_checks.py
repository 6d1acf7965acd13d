"""Checks of the data: problems can be read and kept apart, their gold answers graded, their prompts fit the context."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.preflight.findings import Findings
from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.grading import Grade
from pipeline_lib.policy.model_folders import model_folder
from pipeline_lib.problems.pools import ProblemPool
from pipeline_lib.problems.run_sets import tested_pool, training_pool
from pipeline_lib.types import Problem
from tasks.runtime.prompts import measure_prompts, problems_to_ask, prompt_codec

SHOWN_CHARS = 1000  # of a prompt
MAX_PROBLEMS = 2000  # of each dataset, whose gold answers are graded
OTHER_ANSWER = "#### 7"  # compared with every gold answer: tells one that cannot be read from one that differs


def check_problems(config: PipelineConfig, settings: Settings, findings: Findings) -> str:
    """Every dataset can be read, shares no question with another, and holds what an iteration draws."""
    problems = config.problems
    pool = training_pool(config)
    if len(pool) <= problems.num_validation and pool.validation is None:
        raise ConfigError(
            f"{pool.name}: {len(pool)} problems, of which problems.num_validation={problems.num_validation} are held "
            "out; none is left to train on"
        )
    tests = {named.name: tested_pool(config, named) for named in config.evaluation.test_sets}
    findings.problems |= {"training": pool, **tests}
    validation = [] if pool.validation is None or pool.is_generated else [pool.validation]
    return "; ".join(_describe(found) for found in (pool, *validation, *tests.values()))


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
    """The tokenizer loads, its template leads to an answer that can end, and prompts leave room for one."""
    from pipeline_lib.policy.template_checks import check_end_token, check_template

    assert findings.training_problems is not None  # among the check's needs
    codec = prompt_codec(config, findings.training_problems[0].dataset)
    if not codec.template.is_plain:
        check_template(codec.template)
    check_end_token(model_folder(config.policy.model, config.policy.revision, weights=False), codec.tokenizer)
    findings.tokenizer = codec
    tests = [pool for name, pool in findings.problems.items() if name != "training"]
    found = measure_prompts(config, problems_to_ask(config, findings.training_problems, tests))
    shown = _shortened(codec.template.text(codec.conversation.turns(findings.training_problems[0].question)))
    lengths = f"{found.mean:.0f} tokens on average, {found.longest} at most, of {found.num_prompts:,} tried"
    kind = "the plain template, since its tokenizer has no chat template" if codec.template.is_plain else ""
    examples = f"{config.policy.num_shots} worked examples" if config.policy.num_shots else ""
    return "; ".join(filter(None, (lengths, kind, examples, f"the first: {shown}")))


def _shortened(prompt: str) -> str:
    """A prompt in one line, with escapes for its line breaks, and without its middle where it is long."""
    text = repr(prompt)
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS // 2]} … {text[-SHOWN_CHARS // 2 :]}"


def _describe(pool: ProblemPool) -> str:
    skipped = f", {len(pool.skipped):,} rows skipped ({pool.skipped[0].reason})" if pool.skipped else ""
    left_out = "".join(f", {line.removeprefix(f'{pool.name}: ')}" for line in pool.left_out)
    return f"{pool.name}: {len(pool):,}{skipped}{left_out}"


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
