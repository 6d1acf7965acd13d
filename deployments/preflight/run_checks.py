"""Checks of the run: MLflow answers, one problem passes all stages, and what the whole of it will cost."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rich.filesize import decimal

from deployments.preflight.findings import Findings
from deployments.preflight.rehearsal import rehearse
from pipeline_lib.config import ConfigError, PipelineConfig, Settings
from pipeline_lib.problems.pools import ProblemPool
from pipeline_lib.tracking.outage import without_password
from pipeline_lib.types import Problem
from tasks.runtime.progress_lines import duration


def check_tracking(config: PipelineConfig, settings: Settings, findings: Findings) -> str:
    """MLflow answers, within seconds instead of the patience of a run."""
    from pipeline_lib.tracking import check_tracking_server, tracking_uri

    check_tracking_server(settings)
    named_by = f" ({settings.tracking_variable})" if settings.tracking_variable else ""
    return without_password(tracking_uri(settings)) + named_by


def check_stages(config: PipelineConfig, settings: Settings, findings: Findings) -> str:
    """One problem goes through every stage."""
    assert findings.training_problems is not None  # among the check's needs
    pool = findings.training_problems
    problem, others = typical_problem(pool), list(pool[: config.policy.max_batch])
    with tempfile.TemporaryDirectory() as folder:
        findings.rehearsal = rehearsal = rehearse(config, problem, others, Path(folder))
    note = "; graded in turns to try training, since chance gave no signal" if rehearsal.graded_in_turns else ""
    return (
        f"{rehearsal.outcomes}{note}; {rehearsal.sampled_per_s:,.0f} tokens/s sampled by a full engine, "
        f"{rehearsal.trained_per_s:,.0f} trained"
    )


def check_cost(config: PipelineConfig, settings: Settings, findings: Findings) -> str:
    """Tokens, time and disk of the whole run; two significant digits at best."""
    assert findings.rehearsal is not None  # among the check's needs
    rehearsal, num_problems = findings.rehearsal, config.problems.num_problems
    greedy, samples = _num_evaluation_answers(config, findings)
    evaluated = (greedy + samples) * rehearsal.tokens_per_answer
    evaluation_s = evaluated / rehearsal.sampled_per_s + greedy * rehearsal.seconds_per_prompt
    searched = num_problems * config.search.num_simulations * rehearsal.tokens_per_rollout
    search_s = searched / rehearsal.sampled_per_s + num_problems * rehearsal.seconds_per_prompt
    replayed = [min(earlier, config.train.replay_iterations) for earlier in range(config.num_iterations)]
    trees = num_problems * (1 + sum(replayed) / config.num_iterations)
    trained = trees * rehearsal.trained_tokens * config.train.num_epochs
    iteration_s = search_s + trained / rehearsal.trained_per_s + evaluation_s
    whole_s = evaluation_s + config.num_iterations * iteration_s  # the base is evaluated too
    disk = num_copies(settings) * (num_problems * rehearsal.tree_bytes + rehearsal.policy_bytes) * config.num_iterations
    free = shutil.disk_usage(_nearest_existing(settings.home)).free
    text = (
        f"{_counted(config.num_iterations)} of {(searched + evaluated) / 1e6:,.2g} M tokens and "
        f"{duration(iteration_s)}; {duration(whole_s)} in all on this machine; {decimal(round(disk))} of disk, "
        f"{decimal(free)} free"
    )
    if disk > free:
        raise ConfigError(f"{text}: make room below {settings.home.resolve()}, or set COPPICE_HOME")
    return text


def _counted(num_iterations: int) -> str:
    return "1 iteration" if num_iterations == 1 else f"{num_iterations} iterations, each"


def num_copies(settings: Settings) -> int:
    """How often the disk holds what a run keeps: MLflow's artifacts are links into the store where both lie at home."""
    return 1 if settings.tracking_uri is None and settings.store is None else 2


def typical_problem(pool: ProblemPool) -> Problem:
    """One of median length among the first."""
    some = sorted(pool[:101], key=lambda problem: len(problem.question))
    return some[len(some) // 2]


def _num_evaluation_answers(config: PipelineConfig, findings: Findings) -> tuple[int, int]:
    """Answers that one policy is asked for: to validation and every test set, and samples of each test set."""
    pools = [pool for key, pool in findings.problems.items() if key != "training"]
    evaluation = config.evaluation
    tested = sum(min(evaluation.num_problems, len(pool)) for pool in pools)
    samples = min(evaluation.sampled_problems, evaluation.num_problems) * evaluation.num_samples
    return config.problems.num_validation + tested, samples * len(pools)


def _nearest_existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.resolve()
    return path if path.exists() else _nearest_existing(path.parent)
