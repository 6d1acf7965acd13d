"""The early-stopping gate: a pure function of what is on record.

It reads validation accuracies and nothing else; the test split is never looked at. The best iteration becomes
champion, not the last.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline_lib.config import GateConfig
from pipeline_lib.types import EvalReport, GateDecision, GateTrial, IterationRecord

ROUNDING = 1e-9  # 0.8 - 0.7 is not 0.1; accuracies differ by far more
TRIED_MIN_GAINS = (0.0, 0.005, 0.01, 0.02, 0.05)
TRIED_PATIENCES = (1, 2, 3)


class GateError(ValueError):
    """Records that cannot be judged."""


def decide(records: Sequence[IterationRecord], config: GateConfig, *, dataset: str | None = None) -> GateDecision:
    """Whether to go on after the last record, and which iteration is champion.

    The champion is the record of highest validation accuracy, the earliest among equals. A record
    gains when its accuracy exceeds that of the last record that gained by more than ``min_gain`` (and,
    with ``require_interval``, lies above that record's interval); after ``patience`` records
    in a row without a gain, or after an audit that did not pass, it stops.

    Args:
        records: the base first, then the iterations in order.
        config: patience, and what counts as a gain.
        dataset: the dataset whose validation split is read; None when there is just one.

    Raises:
        GateError: no record, or a trained iteration without validation accuracy.
    """
    if not records:
        raise GateError("gate: no iteration on record")
    measured = _measured(records)
    reports = [_validation(record, dataset) for record in measured]
    if not reports:
        raise GateError("gate: no iteration on record was evaluated; the first record must be the base's")
    best = max(range(len(reports)), key=lambda i: (reports[i].accuracy, -i))
    champion = measured[best].index
    audit = records[-1].audit
    if audit is not None and not audit.passed:
        return GateDecision(proceed=False, champion=champion, reason=f"audit: {audit.reason}")
    accuracy = f"validation accuracy {reports[-1].accuracy:.1%}"
    without = iterations_without_gain(reports, config)
    if without >= config.patience:
        reason = f"{accuracy} after iteration {records[-1].index}: {_lack_of_gain(without, config)}"
        return GateDecision(proceed=False, champion=champion, reason=reason)
    if len(reports) == 1:
        state = "the base"
    elif best == len(reports) - 1:
        state = "the best so far"
    else:
        state = f"best so far {reports[best].accuracy:.1%} in iteration {champion}"
    return GateDecision(proceed=True, champion=champion, reason=f"{accuracy}, {state}")


def iterations_without_gain(reports: Sequence[EvalReport], config: GateConfig) -> int:
    """How many reports at the end brought no gain; the first one counts as a gain.

    Example: accuracies 0.5, 0.6, 0.6, 0.59 with ``min_gain`` 0 give 2.
    """
    last_gain = 0
    for position, report in enumerate(reports):
        if report.accuracy > accuracy_to_beat(reports[last_gain], config) + ROUNDING:
            last_gain = position
    return len(reports) - 1 - last_gain


def accuracy_to_beat(best: EvalReport, config: GateConfig) -> float:
    """What a later accuracy must exceed to count as a gain over `best`, the last that gained."""
    threshold = best.accuracy + config.min_gain
    return max(threshold, best.interval[1]) if config.require_interval else threshold


def calibration_grid(config: GateConfig) -> list[GateConfig]:
    """Gates around `config`, itself among them: every tried minimum gain with every tried patience."""
    min_gains = sorted({*TRIED_MIN_GAINS, config.min_gain})
    patiences = sorted({*TRIED_PATIENCES, config.patience})
    return [
        config.model_copy(update={"min_gain": gain, "patience": patience})
        for gain in min_gains
        for patience in patiences
    ]


def replay(
    records: Sequence[IterationRecord], configs: Sequence[GateConfig], *, dataset: str | None = None
) -> list[GateTrial]:
    """Where each gate would have stopped, and with which champion, had it judged these records as they came.

    It cannot tell what later iterations than the last on record would have brought.

    Args:
        records: the base first, then the iterations in order.
        configs: gates to try, see `calibration_grid`.
        dataset: the dataset whose validation split is read; None when there is just one.

    Raises:
        GateError: as `decide`.
    """
    return [_trial(records, config, dataset) for config in configs]


def _lack_of_gain(num_iterations: int, config: GateConfig) -> str:
    """Why the gate stops after so many iterations without a gain, a clause."""
    gain = f"gain of more than {config.min_gain:.1%}"
    if config.require_interval:
        gain += " beyond the interval"
    iterations = "1 iteration" if num_iterations == 1 else f"{num_iterations} iterations"
    return f"no {gain} for {iterations} (patience {config.patience})"


def _trial(records: Sequence[IterationRecord], config: GateConfig, dataset: str | None) -> GateTrial:
    for length in range(1, len(records) + 1):
        decision = decide(records[:length], config, dataset=dataset)
        if not decision.proceed:
            break
    return GateTrial(
        min_gain=config.min_gain,
        patience=config.patience,
        require_interval=config.require_interval,
        stopped_after=None if decision.proceed else records[length - 1].index,
        champion=decision.champion,
        to_beat=_thresholds(records, config, dataset),
    )


def _thresholds(records: Sequence[IterationRecord], config: GateConfig, dataset: str | None) -> dict[int, float]:
    """By iteration, what its validation accuracy had to exceed; the base has nothing to beat."""
    measured = _measured(records)
    reports = [_validation(record, dataset) for record in measured]
    last_gains = [
        reports[length - 1 - iterations_without_gain(reports[:length], config)] for length in range(1, len(reports))
    ]
    return {record.index: accuracy_to_beat(best, config) for record, best in zip(measured[1:], last_gains, strict=True)}


def _measured(records: Sequence[IterationRecord]) -> list[IterationRecord]:
    """Without iterations that the audit stopped before they trained."""
    return [record for record in records if record.evaluations or record.audit is None or record.audit.passed]


def _validation(record: IterationRecord, dataset: str | None) -> EvalReport:
    for report in record.evaluations:
        if report.split == "validation" and dataset in (None, report.dataset):
            return report
    raise GateError(f"gate: iteration {record.index} has no validation accuracy on {dataset or 'any dataset'}")
