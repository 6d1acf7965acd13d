"""The early-stopping gate: a pure function of what is on record.

It reads what was measured on the validation split and nothing else; the test split is never looked at. The best
iteration becomes champion, not the last, and the next one starts from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_lib.config import GateConfig
from pipeline_lib.types import EvalReport, GateDecision, GateTrial, IterationRecord, PairedTest, PolicyRef

ROUNDING = 1e-9  # 0.8 - 0.7 is not 0.1; accuracies differ by far more
TRIED_MIN_GAINS = (0.0, 0.005, 0.01, 0.02, 0.05)
TRIED_PATIENCES = (1, 2, 3)


class GateError(ValueError):
    """Records that cannot be judged."""


@dataclass(frozen=True, slots=True)
class _Point:
    """One point of the curve: a record's index, its validation report, and its paired tests on that split."""

    index: int
    report: EvalReport
    tests: tuple[PairedTest, ...] = ()

    @property
    def accuracy(self) -> float:
        """Of all problems of the split: ignored answers are wrong here, else a policy gains by being cut off."""
        return self.report.num_correct / self.report.num_problems

    @property
    def upper_limit(self) -> float:
        """Of the accuracy's own 95 % interval."""
        return self.report.interval[1] * (1 - self.report.num_ignored / self.report.num_problems)

    @property
    def name(self) -> str:
        return "the base" if self.index == 0 else f"iteration {self.index}"

    def test_against(self, rival: _Point) -> PairedTest | None:
        """The test against an earlier point; one of version 0.1.0 tells by its name alone what it is against."""
        known = {"base": 0, "previous": self.index - 1}
        for test in self.tests:
            iteration = known.get(test.against) if test.against_iteration is None else test.against_iteration
            if iteration == rival.index:
                return test
        return None


def decide(records: Sequence[IterationRecord], config: GateConfig, *, dataset: str | None = None) -> GateDecision:
    """Whether to go on after the last record, and which iteration is champion.

    The champion is the record of highest validation accuracy, the earliest among equals; accuracies are shares of all
    problems, so ignored answers are wrong here. A record
    gains when its accuracy exceeds that of the last record that gained by more than ``min_gain`` (and,
    with ``require_interval``, when the paired 95 % interval of that difference lies above 0); after ``patience``
    records in a row without a gain, or after an audit that did not pass, it stops.

    Args:
        records: the base first, then the iterations in order.
        config: patience, and what counts as a gain.
        dataset: the dataset whose validation split is read; None when there is just one.

    Raises:
        GateError: no record, or a trained iteration without validation accuracy.
    """
    curve = _curve(records, dataset)
    best, last, audit = _best(curve), curve[-1], records[-1].audit
    if audit is not None and not audit.passed:
        where = f" in {best.name}" if best.index else ""
        reason = f"{_standing(best, best, where)}; audit of iteration {records[-1].index}: {audit.reason}"
        return GateDecision(proceed=False, champion=best.index, reason=reason)
    gains = _last_gains(curve, config)
    without = len(gains) - 1 - gains[-1]
    note = (_unpaired(curve, gains) if config.require_interval else "") + _ignored(curve)
    if without >= config.patience:
        rival = curve[gains[-1]]
        reason = f"validation accuracy {last.accuracy:.1%} after {last.name}: {_lack_of_gain(without, rival, config)}"
        if rival is not best:
            reason += f"; best so far {best.accuracy:.1%} in {best.name}"
        return GateDecision(proceed=False, champion=best.index, reason=reason + note)
    return GateDecision(proceed=True, champion=best.index, reason=_standing(last, best) + note)


def best_so_far(records: Sequence[IterationRecord], *, dataset: str | None = None) -> IterationRecord:
    """The record of highest validation accuracy, the earliest among equals.

    Args:
        records: the base first, then the iterations in order.
        dataset: the dataset whose validation split is read; None when there is just one.

    Raises:
        GateError: as `decide`.
    """
    index = _best(_curve(records, dataset)).index
    return next(record for record in records if record.index == index)


def policy_to_go_on_from(records: Sequence[IterationRecord], decision: GateDecision, config: GateConfig) -> PolicyRef:
    """The policy that the next iteration searches with, trains from and is held near.

    Args:
        records: the base first, then the iterations in order.
        decision: the gate's about these records.
        config: `continue_from` says whether it is the champion's or the last one's.
    """
    if config.continue_from == "last":
        return records[-1].policy
    return next(record.policy for record in records if record.index == decision.champion)


def iterations_without_gain(reports: Sequence[EvalReport], config: GateConfig) -> int:
    """How many reports at the end brought no gain, without paired tests; the first one counts as a gain.

    Example: accuracies 0.5, 0.6, 0.6, 0.59 with ``min_gain`` 0 give 2.
    """
    gains = _last_gains([_Point(position, report) for position, report in enumerate(reports)], config)
    return len(gains) - 1 - gains[-1]


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


def _last_gains(curve: Sequence[_Point], config: GateConfig) -> list[int]:
    """After each point, the position of the last that gained; the first one counts as a gain."""
    gains = [0]
    for position, point in enumerate(curve[1:], 1):
        is_gain = point.accuracy > _to_beat(curve[gains[-1]], point, config) + ROUNDING
        gains.append(position if is_gain else gains[-1])
    return gains


def _to_beat(rival: _Point, point: _Point, config: GateConfig) -> float:
    """What a point's accuracy must exceed to be a gain over `rival`, the last that gained.

    The paired interval of the difference lies above 0 just where the accuracy exceeds itself less the lower limit.
    Without a paired test on record it is the rival's own interval that must be exceeded.
    """
    threshold = rival.accuracy + config.min_gain
    if not config.require_interval:
        return threshold
    test = point.test_against(rival)
    return max(threshold, rival.upper_limit if test is None else point.accuracy - test.interval[0])


def _standing(point: _Point, best: _Point, where: str = "") -> str:
    """A point's accuracy and where it stands, a clause."""
    accuracy = f"validation accuracy {point.accuracy:.1%}{where}"
    if point.index == 0:
        return f"{accuracy}, the base"
    if point is best:
        return f"{accuracy}, the best so far"
    return f"{accuracy}, best so far {best.accuracy:.1%} in {best.name}"


def _lack_of_gain(num_iterations: int, rival: _Point, config: GateConfig) -> str:
    """Why the gate stops after so many iterations without a gain, a clause."""
    gain = f"gain of more than {config.min_gain:.1%}"
    if config.require_interval:
        gain += " beyond the interval"
    iterations = "1 iteration" if num_iterations == 1 else f"{num_iterations} iterations"
    return f"no {gain} over {rival.accuracy:.1%} of {rival.name} for {iterations} (patience {config.patience})"


def _unpaired(curve: Sequence[_Point], gains: Sequence[int]) -> str:
    """Says so where the last point could not be paired with what it had to beat; else empty."""
    if len(curve) == 1:
        return ""
    rival = curve[gains[-2]]
    if curve[-1].test_against(rival) is not None:
        return ""
    return f"; against {rival.name} by its own interval alone: no paired test is on record"


def _ignored(curve: Sequence[_Point]) -> str:
    """Says so where the accuracies are not those that the reports give; else empty."""
    return "; of all problems, ignored answers among them" if any(p.report.num_ignored for p in curve) else ""


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
    curve = _curve(records, dataset)
    gains = _last_gains(curve, config)
    return {point.index: _to_beat(curve[gain], point, config) for point, gain in zip(curve[1:], gains, strict=False)}


def _best(curve: Sequence[_Point]) -> _Point:
    return max(curve, key=lambda point: (point.accuracy, -point.index))


def _curve(records: Sequence[IterationRecord], dataset: str | None) -> list[_Point]:
    """What the gate reads of the records; iterations that the audit stopped before they trained have no point."""
    if not records:
        raise GateError("gate: no iteration on record")
    measured = [record for record in records if record.evaluations or record.audit is None or record.audit.passed]
    if not measured:
        raise GateError("gate: no iteration on record was evaluated; the first record must be the base's")
    return [_point(record, dataset) for record in measured]


def _point(record: IterationRecord, dataset: str | None) -> _Point:
    for report in record.evaluations:
        if report.split == "validation" and dataset in (None, report.dataset):
            mine = (report.dataset, report.split)
            return _Point(record.index, report, tuple(t for t in record.paired if (t.dataset, t.split) == mine))
    raise GateError(f"gate: iteration {record.index} has no validation accuracy on {dataset or 'any dataset'}")
