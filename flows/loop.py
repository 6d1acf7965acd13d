"""The loop of self-training: a policy searches, scores its own steps and learns from them, until it stops improving.

`self_training` runs it as a flow; a plan walks it and makes nothing, for which Prefect need not be loaded.
"""

from __future__ import annotations

from pipeline_lib.config import PipelineConfig
from pipeline_lib.gate import policy_to_go_on_from
from pipeline_lib.score.score_audit import remedy_may_help
from pipeline_lib.types import IterationRecord, PolicyRef, Ref, RunResult
from tasks.audit import audit_iteration, load_audit
from tasks.evaluate import evaluate_policy
from tasks.finish import finish_run
from tasks.gate import decide_gate
from tasks.problems import asked_before, draw_problems, evaluation_sets
from tasks.record import record_iteration
from tasks.runtime.artifacts import drop_doubles
from tasks.runtime.policies import base_policy, trained_policy
from tasks.runtime.prompts import check_prompts
from tasks.score import score_steps
from tasks.search import search_problems
from tasks.train import check_training, replayed_from, train_policy


def improve_policy(config: PipelineConfig) -> RunResult:
    """Improves a policy with data that it makes itself (arXiv 2501.01478).

    1. Measure the base on the validation and test sets.
    2. Draw problems and search each with the best policy so far: a tree of steps per problem.
    3. Score every step by its relative correctness.
    4. Audit the scores; without signal search on once, where that can help, then stop.
    5. Train on the scored steps, held near the policy that searched.
    6. Measure the new policy.
    7. Ask the gate; go on with 2, or stop and name the best iteration champion.
    """
    check_training(config)
    check_prompts(config)
    base = base_policy(config)
    records = [record_base(config, base)]
    decision = decide_gate(config=config, records=records)
    while decision.proceed and len(records) <= config.num_iterations:
        parent = policy_to_go_on_from(records, decision, config.gate)
        records.append(run_iteration(config, parent, records))
        decision = decide_gate(config=config, records=records)
    result = finish_run(config=config, records=records, decision=decision)
    drop_doubles()
    return result


def record_base(config: PipelineConfig, base: PolicyRef) -> IterationRecord:
    """Step 1."""
    evaluations = evaluate_everywhere(config, base)
    return record_iteration(
        config=config, index=0, parent=None, policy=base, stages={}, evaluations=evaluations, earlier=[]
    )


def run_iteration(config: PipelineConfig, parent: PolicyRef, earlier: list[IterationRecord]) -> IterationRecord:
    """Steps 2 to 6, once."""
    index, policy = len(earlier), parent
    problems = draw_problems(config=config, iteration=index, asked=asked_before(config, earlier))
    stages = search_and_audit(config, problems, parent, index)
    evaluations: list[Ref] = []
    if load_audit(stages["audit"][0]).passed:
        trees, scores = stages["search"], stages["score"][0]
        again = replayed_from(config, earlier)
        trained = train_policy(
            config=config, trees=trees, scores=scores, policy=parent, iteration=index, replayed=again
        )
        policy = trained_policy(config, trained, iteration=index)
        stages["train"] = (trained,)
        evaluations = evaluate_everywhere(config, policy)
    return record_iteration(
        config=config,
        index=index,
        parent=parent,
        policy=policy,
        stages=stages,
        evaluations=evaluations,
        earlier=earlier,
    )


def search_and_audit(
    config: PipelineConfig, problems: Ref, policy: PolicyRef, index: int
) -> dict[str, tuple[Ref, ...]]:
    """Steps 2 to 4, with the audit's one remedy; references by stage."""
    trees = search_problems(config=config, problems=problems, policy=policy, iteration=index)
    scores = score_steps(config=config, trees=trees, iteration=index)
    audit = audit_iteration(config=config, trees=trees, scores=scores, iteration=index, earlier=())
    first_search: tuple[Ref, ...] = ()
    if remedy_may_help(load_audit(audit), config.audit):
        first_search = trees
        trees = search_problems(config=config, problems=problems, policy=policy, iteration=index, earlier=first_search)
        scores = score_steps(config=config, trees=trees, iteration=index)
        audit = audit_iteration(config=config, trees=trees, scores=scores, iteration=index, earlier=first_search)
    stages = {"problems": (problems,), "search": trees, "score": (scores,), "audit": (audit,)}
    return stages | ({"first_search": first_search} if first_search else {})


def evaluate_everywhere(config: PipelineConfig, policy: PolicyRef) -> list[Ref]:
    """The validation set, which the gate reads, and every test set."""
    return [
        evaluate_policy(config=config, problems=problems, policy=policy, split=split, name=name)
        for name, split, problems in evaluation_sets(config)
    ]
