"""Measures a policy on one problem set."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from pipeline_lib.config import PipelineConfig
from pipeline_lib.evaluation import evaluate, write_predictions
from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.seeding import derive_seed
from pipeline_lib.store import Entry, canonical_json, read_json, write_json
from pipeline_lib.types import EvalReport, PolicyRef, Ref
from tasks.problems import PROBLEMS
from tasks.runtime.engines import engine_spec, open_policy
from tasks.runtime.graders import as_evaluated, extractor, grading_spec, open_grader, yardstick_spec
from tasks.runtime.keys import key_of
from tasks.runtime.progress import Progress
from tasks.runtime.stage import Done, open_store, stage

REPORT, PREDICTIONS = "report.json", "predictions.parquet"
FAILURES = ("num_errors", "num_redrawn")  # of the engine, as its stats count them
VOTES = 2
"""Raised with every change of what is made of samples; reports without samples are found again then."""


def _spec(*, config: PipelineConfig, problems: Ref, policy: PolicyRef, split: str, name: str) -> dict[str, Any]:
    unread = {"datasets", "num_problems", "grader"} | (
        set() if config.evaluation.num_samples else {"temperature", "top_p"}
    )
    return {
        "evaluation": key_of(config.evaluation, without=unread),
        "engine": engine_spec(config, policy, _dataset(config, split, name)),
        "policy_id": policy.policy_id,
        **grading_spec(as_evaluated(config), _dataset(config, split, name)),
        "seed": config.seed,
        "split": split,
        **({"votes": VOTES} if config.evaluation.num_samples else {}),
        **_truncated_key(config),
    }


def _dataset(config: PipelineConfig, split: str, name: str) -> str:
    """The dataset of the set that `evaluation_sets` calls `name`."""
    tested = {f"{named.name} test": named.dataset for named in config.evaluation.test_sets}
    return tested.get(name, config.problems.dataset) if split == "test" else config.problems.dataset


def _truncated_key(config: PipelineConfig) -> dict[str, str]:
    """Version 0.1.0 graded what was cut off, so with that its results are found."""
    return {"truncated": config.truncated} if config.truncated != "grade" else {}


@stage(_spec, version=2, run_name="evaluate {policy.iteration} {name}")
def evaluate_policy(
    entry: Entry, *, config: PipelineConfig, problems: Ref, policy: PolicyRef, split: str, name: str
) -> Done:
    """Greedy pass@1 with its interval, and avg@n, maj@n and pass@k where samples are asked for."""
    asked = read_problems(open_store().open(problems) / PROBLEMS)
    dataset, num_samples = asked[0].dataset, config.evaluation.num_samples
    num_sampled = num_samples * min(config.evaluation.sampled_problems, len(asked))
    progress = Progress(f"evaluate {policy.iteration} {name}", len(asked) + num_sampled)
    engine = open_policy(config, policy, asked)
    progress.count_tokens(lambda: engine.stats.tokens_generated)
    failed = Counter({name: -getattr(engine.stats, name) for name in FAILURES})
    with open_grader(as_evaluated(config), dataset) as grader:
        report, predictions = evaluate(
            asked,
            engine,
            grader,
            split=split,
            config=config.evaluation,
            seed=derive_seed(config.seed, "evaluate"),
            extract=extractor(config, dataset),
            truncated=config.truncated,
            max_failed_share=config.policy.max_failed_share,
            on_answers=progress.advance,
        )
    failed.update({name: getattr(engine.stats, name) for name in FAILURES})
    report = report.model_copy(update={"problems": problems, "yardstick": _yardstick(config, problems, dataset)})
    write_json(entry.path / REPORT, report)
    write_predictions(predictions, entry.path / PREDICTIONS)
    return Done(len(asked), {name: float(failed[name]) for name in FAILURES})


def _yardstick(config: PipelineConfig, problems: Ref, dataset: str) -> str:
    """What two policies must share for their accuracies to be compared."""
    shared = {
        "problems": problems.sha256,
        **yardstick_spec(as_evaluated(config), dataset),
        "max_new_tokens": config.evaluation.max_new_tokens,
        **_truncated_key(config),
    }
    return hashlib.sha256(canonical_json(shared).encode()).hexdigest()[:16]


def load_report(ref: Ref) -> EvalReport:
    """The report that `evaluate_policy` wrote, with a reference to its predictions."""
    report = EvalReport.model_validate(read_json(open_store().open(ref) / REPORT))
    return report.model_copy(update={"predictions": ref})
