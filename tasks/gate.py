"""Asks the early-stopping gate after an iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline_lib.config import PipelineConfig
from pipeline_lib.gate import decide
from pipeline_lib.store import Entry, read_json, write_json
from pipeline_lib.types import GateDecision, IterationRecord
from tasks.record import records_spec
from tasks.runtime.artifacts import show_markdown
from tasks.runtime.keys import key_of
from tasks.runtime.stage import Done, stage

DECISION = "decision.json"


def _gate_spec(*, config: PipelineConfig, records: Sequence[IterationRecord]) -> dict[str, Any]:
    """`continue_from` decides what comes next, not whether; the rule of paired intervals is younger than its dial."""
    return {
        "gate": key_of(config.gate, without={"continue_from"}),
        "dataset": config.problems.dataset,
        "records": records_spec(records),
        **({"interval": "paired"} if config.gate.require_interval else {}),
    }


@stage(
    _gate_spec,
    run_name="gate",
    result=lambda entry: GateDecision.model_validate(read_json(entry.path / DECISION)),
)
def decide_gate(entry: Entry, *, config: PipelineConfig, records: Sequence[IterationRecord]) -> Done:
    """Whether to go on, from what is on record about the validation set."""
    decision = decide(records, config.gate, dataset=config.problems.dataset)
    write_json(entry.path / DECISION, decision)
    verdict = "Go on" if decision.proceed else "Stop"
    show_markdown(f"**{verdict}.** {decision.reason}", key="gate", description=f"After iteration {records[-1].index}")
    return Done(len(records))
