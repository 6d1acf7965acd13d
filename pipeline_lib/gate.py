"""The early-stopping gate: a pure function of what is on record.

One idea: it reads validation accuracies and nothing else; the test split is never looked at. The
best iteration becomes champion, not the last.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline_lib.config import GateConfig
from pipeline_lib.types import EvalReport, GateDecision, IterationRecord

ROUNDING = 1e-9  # 0.8 - 0.7 is not 0.1; accuracies differ by far more


class GateError(ValueError):
    """Records that cannot be judged."""


def decide(records: Sequence[IterationRecord], config: GateConfig, *, dataset: str | None = None) -> GateDecision:
    """Whether to go on after the last record, and which iteration is champion.

    The champion is the record of highest validation accuracy, the earliest among equals. A record
    gains when its accuracy exceeds that of the last record that gained by more than ``min_gain`` (and,
    with ``require_interval``, lies above that record's interval); after ``patience`` records
    in a row without a gain, or after an audit that did not pass, it stops.

    Args:
        records: base first, in order.
        config: patience and what counts as a gain.
        dataset: whose validation split is read; None when there is just one.

    Raises:
        GateError: no record, or a trained iteration without validation accuracy.
    """
    if not records:
        raise GateError("gate: no iteration on record")
    measured = [record for record in records if record.evaluations or record.audit is None or record.audit.passed]
    reports = [_validation(record, dataset) for record in measured]
    if not reports:
        raise GateError("gate: no iteration on record was evaluated; the first record must be the base's")
    best = max(range(len(reports)), key=lambda i: (reports[i].accuracy, -i))
    champion = measured[best].index
    audit = records[-1].audit
    if audit is not None and not audit.passed:
        return GateDecision(proceed=False, champion=champion, reason=f"audit: {audit.reason}")
    without = iterations_without_gain(reports, config)
    last = reports[-1].accuracy
    if without >= config.patience:
        reason = (
            f"validation accuracy {last:.1%} after iteration {records[-1].index}: no gain of more than "
            f"{config.min_gain:.1%}{' beyond the interval' * config.require_interval} for {without} "
            f"iteration{'s' * (without > 1)} (patience {config.patience})"
        )
        return GateDecision(proceed=False, champion=champion, reason=reason)
    if len(reports) == 1:
        state = "the base"
    elif best == len(reports) - 1:
        state = "the best so far"
    else:
        state = f"best so far {reports[best].accuracy:.1%} in iteration {champion}"
    return GateDecision(proceed=True, champion=champion, reason=f"validation accuracy {last:.1%}, {state}")


def iterations_without_gain(reports: Sequence[EvalReport], config: GateConfig) -> int:
    """How many reports at the end brought no gain; the first one counts as a gain.

    Example: accuracies 0.5, 0.6, 0.6, 0.59 with ``min_gain`` 0 give 2.
    """
    best, last_gain = reports[0], 0
    for position, report in enumerate(reports[1:], 1):
        gains = report.accuracy - best.accuracy > config.min_gain + ROUNDING
        if config.require_interval:
            gains = gains and report.accuracy > best.interval[1]
        if gains:
            best, last_gain = report, position
    return len(reports) - 1 - last_gain


def _validation(record: IterationRecord, dataset: str | None) -> EvalReport:
    for report in record.evaluations:
        if report.split == "validation" and dataset in (None, report.dataset):
            return report
    raise GateError(f"gate: iteration {record.index} has no validation accuracy on {dataset or 'any dataset'}")
