"""What a run would find in the store and what it would have to make: `coppice run --dry-run`.

One idea: the flow itself is asked. Its stages look instead of working, and the walk ends where the store first lacks
something; so the plan cannot differ from the run. Nothing is made, no server starts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deployments.preflight.findings import Findings
from pipeline_lib.config import PipelineConfig, Settings
from pipeline_lib.types import Ref

OF_THE_BASE = ("draw-problems", "draw-test-problems", "evaluate-policy", "record-iteration", "decide-gate")
OF_AN_ITERATION = (
    "draw-problems",
    "search-shard",
    "gather-trees",
    "score-steps",
    "audit-iteration",
    "train-policy",
    "evaluate-policy",
    "record-iteration",
    "decide-gate",
)
WORKED_OUT = ("record-iteration", "decide-gate")
SMALL_MODEL_BYTES = 200 << 20  # with one that is larger, trying a problem out takes minutes or a GPU


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a run, as the store has it.

    Args:
        label: what the UI calls it, or several that follow.
        verdict: ``depends`` where it is not known before what comes earlier is made.
        note: what is known of it.
    """

    label: str
    verdict: Literal["in the store", "to do", "depends"]
    note: str = ""


def plan_run(config: PipelineConfig, refreshed: Collection[str] = ()) -> list[PlannedStage]:
    """The stages in their order: those that are there, the first that is not, and what follows in a few words.

    Records and the gate's decisions cost nothing and are worked out where they are not there, so the plan goes on.

    Args:
        config: of the run.
        refreshed: names of stages that are made again though they are there; what follows depends on their bytes.
    """
    from flows.loop import improve_policy
    from tasks.runtime.stage import NotInStoreError, Stage, looking_only

    stages: dict[str, PlannedStage] = {}
    gates, missing = 0, ""

    def look(stage: Stage[..., Any], arguments: Mapping[str, Any]) -> Any:
        nonlocal gates, missing
        label = f"gate {gates}" if stage.name == "decide-gate" else stage.label(arguments)
        gates += stage.name == "decide-gate"
        if stage.name in refreshed:
            stages[label], missing = PlannedStage(label, "to do", "made again"), stage.name
            raise NotInStoreError(label)
        if (found := stage.find(**arguments)) is not None:
            stages.setdefault(label, PlannedStage(label, "in the store", _what_is_there(found)))
            return stage.result(**arguments)
        stages[label] = PlannedStage(label, "to do")
        if stage.name not in WORKED_OUT:
            missing = stage.name
            raise NotInStoreError(label)
        return _work_out(stage.name, arguments)

    with looking_only(look):
        try:
            improve_policy(config)
        except NotInStoreError:
            return [*stages.values(), *_what_follows(config, gates, missing)]
    return list(stages.values())


def estimate(config: PipelineConfig, settings: Settings) -> str:
    """What `coppice check` says the whole run costs, where that is found out within seconds; else how to ask it."""
    from pipeline_lib.policy.model_folders import model_path

    folder = Path(model_path(config.policy.model))  # of a model on the hub, its name, which is no folder here
    num_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    is_small = 0 < num_bytes < SMALL_MODEL_BYTES
    if not (config.policy.backend == "scripted" or (config.policy.backend == "transformers" and is_small)):
        return "coppice check estimates the cost: it tries one problem with the model"
    from deployments.preflight.problem_checks import check_problems
    from deployments.preflight.run_checks import check_cost, check_stages

    findings = Findings()
    check_problems(config, settings, findings)
    check_stages(config, settings, findings)
    return f"the whole run, with nothing in the store: {check_cost(config, settings, findings)}"


def _work_out(name: str, arguments: Mapping[str, Any]) -> Any:
    """A record, or the gate's decision, as the stage would come to it."""
    from pipeline_lib.gate import decide
    from tasks.record import make_record

    if name == "record-iteration":
        return make_record(**arguments)
    config: PipelineConfig = arguments["config"]
    return decide(arguments["records"], config.gate, dataset=config.problems.dataset)


def _what_is_there(found: Ref) -> str:
    from tasks.runtime.stage import seconds_of

    stage, _, key = found.uri.partition("/")
    seconds = seconds_of(found)
    return f"{stage}/{key[:8]}…, {found.num_rows} rows" + ("" if math.isnan(seconds) else f", made in {seconds:,.1f} s")


def _what_follows(config: PipelineConfig, gates: int, missing: str) -> Iterator[PlannedStage]:
    """What comes after the first stage that the store lacks.

    Args:
        config: how many iterations there are at most.
        gates: how often the gate was asked before: once after the base, then after each iteration.
        missing: name of the stage that is lacking.
    """
    if missing == "finish-run":
        return
    order = OF_AN_ITERATION if gates else OF_THE_BASE
    rest = order[order.index(missing) + 1 :] if missing in order else ()
    if rest:
        yield PlannedStage(", ".join(rest), "depends", f"of {'iteration ' + str(gates) if gates else 'the base'}")
    left = config.num_iterations - gates
    if left:
        which = f"iteration {gates + 1}" if left == 1 else f"iterations {gates + 1} to {config.num_iterations}"
        yield PlannedStage(which, "depends", "as far as the gate goes on")
