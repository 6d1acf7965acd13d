"""The results table: one row per iteration, the same on the terminal and on the page.

One idea: a number that was not measured is a dash, never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_lib.types import EvalReport, GateDecision, IterationRecord

DASH = "–"


@dataclass(frozen=True, slots=True)
class IterationRow:
    """One iteration as text.

    Args:
        name: ``base`` or the iteration's number.
        accuracies: test accuracy ± half its 95 % interval in points, by dataset.
        decision: ``champion``, ``not trained`` or nothing.
    """

    name: str
    accuracies: dict[str, str]
    informative_share: str
    variance: str
    kl: str
    tokens: str
    seconds: str
    decision: str


def tested_datasets(records: Sequence[IterationRecord]) -> list[str]:
    """Names of all datasets with a test report, in order of appearance."""
    return list(dict.fromkeys(e.dataset for record in records for e in record.evaluations if e.split == "test"))


def records_table(records: Sequence[IterationRecord], decision: GateDecision) -> list[IterationRow]:
    """One `IterationRow` per record; the decision's champion is marked."""
    datasets = tested_datasets(records)
    return [_row(record, datasets, decision.champion) for record in records]


def format_accuracy(report: EvalReport | None) -> str:
    """Accuracy in per cent with half the width of its interval in points.

    Example: accuracy 0.5 with interval (0.45, 0.55) is ``50.0 ±5.0``.
    """
    if report is None:
        return DASH
    low, high = report.interval
    return f"{100 * report.accuracy:.1f} ±{50 * (high - low):.1f}"


def _row(record: IterationRecord, datasets: Sequence[str], champion: int) -> IterationRow:
    audit = record.audit
    return IterationRow(
        name="base" if record.index == 0 else str(record.index),
        accuracies={name: format_accuracy(record.evaluation(name, "test")) for name in datasets},
        informative_share=f"{100 * audit.informative_share:.0f} %" if audit else DASH,
        variance=f"{audit.variance:.3g}" if audit else DASH,
        kl=_number(record.train.get("kl"), ".3f"),
        tokens=_number(record.search.get("tokens_generated"), ",.0f"),
        seconds=_number(sum(record.seconds.values()) or None, ".0f"),
        decision=_decision(record, champion),
    )


def _number(value: float | None, spec: str) -> str:
    return DASH if value is None or math.isnan(value) else format(value, spec)


def _decision(record: IterationRecord, champion: int) -> str:
    if record.audit is not None and not record.audit.passed:
        return "not trained"
    return "champion" if record.index == champion else ""
