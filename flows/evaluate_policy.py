"""Evaluation: one policy on the validation set or on every test set."""

from __future__ import annotations

from typing import Literal

from prefect import flow

from pipeline_lib.config import PipelineConfig
from pipeline_lib.types import EvalReport
from tasks.champion import named_policy
from tasks.evaluate import evaluate_policy as evaluate_on
from tasks.problems import evaluation_sets
from tasks.reporting.evaluation_run import record_evaluation
from tasks.runtime.policies import base_policy
from tasks.runtime.prompts import check_prompts


@flow(name="evaluate-policy", flow_run_name="{config.preset}-{split}")
def evaluate_policy(
    config: PipelineConfig, adapter: str | None = None, split: Literal["validation", "test"] = "test"
) -> list[EvalReport]:
    """Measures a policy.

    1. Take the base, with the adapter or the full weights if a folder or a registered version of them is named.
    2. Answer every problem of the split greedily; sample where ``evaluation.num_samples`` asks for it.
    3. Put accuracy with its interval on record in MLflow, one report per dataset.
    """
    check_prompts(config, [split])
    policy = base_policy(config) if adapter is None else named_policy(config, adapter)
    evaluations = [
        evaluate_on(config=config, problems=problems, policy=policy, split=split, name=name)
        for name, split, problems in evaluation_sets(config, [split])
    ]
    return record_evaluation(config=config, policy=policy, split=split, evaluations=evaluations)
