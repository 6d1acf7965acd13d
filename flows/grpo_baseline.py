"""The outside baseline: TRL's GRPO on the base, problems and grader of a run, measured as a run's iterations are."""

from __future__ import annotations

from prefect import flow

from flows.loop import evaluate_everywhere
from pipeline_lib.config import PipelineConfig
from pipeline_lib.training.outside.grpo_config import GrpoConfig
from pipeline_lib.types import RunResult
from tasks.outside.baseline import record_baseline
from tasks.outside.grpo import check_grpo, grpo_policies, train_grpo
from tasks.problems import draw_problems
from tasks.runtime.policies import base_policy
from tasks.runtime.prompts import check_prompts


@flow(name="grpo-baseline", flow_run_name="{config.flow_run_name}-grpo", validate_parameters=True)
def grpo_baseline(config: PipelineConfig, grpo: GrpoConfig, tokens: int) -> RunResult:
    """Trains a policy by GRPO (arXiv 2402.03300), as TRL does it, on as many generated tokens as a run.

    1. Draw the problems of all of the run's iterations.
    2. Train on them in one go; keep the adapter each time that `tokens` more have been generated.
    3. Measure the base and every adapter on the validation and test sets.
    4. Put the curve on record in MLflow, and name the best by validation accuracy.
    """
    check_grpo(config)
    check_prompts(config)
    base = base_policy(config)
    problems = tuple(draw_problems(config=config, iteration=k) for k in range(1, config.num_iterations + 1))
    trained = train_grpo(config=config, grpo=grpo, problems=problems, policy=base, tokens=tokens)
    policies = [base, *grpo_policies(base, trained)]
    return record_baseline(
        config=config,
        grpo=grpo,
        tokens=tokens,
        problems=problems,
        trained=trained,
        policies=policies,
        evaluations=[evaluate_everywhere(config, policy) for policy in policies],
    )
