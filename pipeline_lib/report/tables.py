"""Records as rows of text: the results table, the same on the terminal and on the page, and the page's smaller ones.

A number that was not measured is a dash, never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline_lib.config import GateConfig, PipelineConfig
from pipeline_lib.types import EvalReport, GateDecision, GateTrial, IterationRecord, PairedTest, RunResult

DASH = "–"


@dataclass(frozen=True, slots=True)
class IterationRow:
    """One iteration as text; what was not measured is a dash.

    Args:
        name: ``base`` or the iteration's number.
        accuracies: test accuracy ± half its 95 % interval in points, by dataset.
        informative_share: problems with right and wrong rollouts, in per cent.
        variance: of the step scores.
        kl: mean KL of training, nats per scored token.
        tokens: tokens that the search sampled.
        seconds: of all stages together.
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


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """A number that a reader shall take away.

    Args:
        name: what was measured.
        value: the number with its unit.
        detail: its interval or its context, a few words; may be empty.
    """

    name: str
    value: str
    detail: str


@dataclass(frozen=True, slots=True)
class GateCell:
    """What one gate would have done.

    Args:
        stop: ``goes on`` or ``stops after`` an iteration.
        champion: ``the base`` or the iteration that it would have taken.
        is_own: whether it is the gate of the run.
    """

    stop: str
    champion: str
    is_own: bool


@dataclass(frozen=True, slots=True)
class GateRow:
    """Gates of one minimum gain, by rising patience.

    Args:
        name: the minimum gain, in points.
        patiences: one per cell.
        cells: what each of the gates would have done.
    """

    name: str
    patiences: tuple[int, ...]
    cells: tuple[GateCell, ...]


def tested_datasets(records: Sequence[IterationRecord]) -> list[str]:
    """Names of all datasets with a test report, in order of appearance."""
    return list(dict.fromkeys(e.dataset for record in records for e in record.evaluations if e.split == "test"))


def records_table(records: Sequence[IterationRecord], decision: GateDecision | None) -> list[IterationRow]:
    """One `IterationRow` per record; the decision's champion is marked, without a decision none is."""
    datasets, champion = tested_datasets(records), None if decision is None else decision.champion
    return [_row(record, datasets, champion) for record in records]


def format_accuracy(report: EvalReport | None) -> str:
    """Accuracy in per cent with half the width of its interval in points.

    Example: accuracy 0.5 with interval (0.45, 0.55) is ``50.0 ±5.0``.
    """
    if report is None:
        return DASH
    low, high = report.interval
    return f"{100 * report.accuracy:.1f} ±{50 * (high - low):.1f}"


def _row(record: IterationRecord, datasets: Sequence[str], champion: int | None) -> IterationRow:
    audit = record.audit
    return IterationRow(
        name="base" if record.index == 0 else str(record.index),
        accuracies={name: format_accuracy(record.evaluation(name, "test")) for name in datasets},
        informative_share=f"{100 * audit.informative_share:.0f} %" if audit else DASH,
        variance=f"{audit.variance:.3g}" if audit else DASH,
        kl=_number(record.train.get("kl"), ".3f"),
        tokens=_number(record.search.get("tokens_generated"), ",.0f"),
        seconds=_number(sum(record.seconds.values()) or None, ".0f"),
        decision=_decision(record, is_champion=record.index == champion),
    )


def _number(value: float | None, spec: str) -> str:
    return DASH if value is None or math.isnan(value) else format(value, spec)


def _decision(record: IterationRecord, *, is_champion: bool) -> str:
    if record.audit is not None and not record.audit.passed:
        return "not trained"
    return "champion" if is_champion else ""


def _counted(number: float, noun: str) -> str:
    """``1 iteration``, ``3 iterations``."""
    return f"{number:g} {noun}" if number == 1 else f"{number:g} {noun}s"


def headline(config: PipelineConfig, result: RunResult) -> str:
    """The run in one line: what it trained on, and how far that came."""
    dataset, champion = config.problems.dataset, _champion(result)
    before = result.records[0].evaluation(dataset, "test")
    after = champion.evaluation(dataset, "test")
    if champion.index == 0 or before is None or after is None:
        return f"{dataset}: the base stays best"
    gain = f"{100 * before.accuracy:.1f} to {100 * after.accuracy:.1f} %"
    return f"{dataset}: {gain} in {_counted(champion.index, 'iteration')}"


def key_figures(config: PipelineConfig, result: RunResult) -> list[KeyFigure]:
    """The champion, its gain on each test set, what it cost."""
    champion, last = _champion(result), result.records[-1].index
    name = "the base" if champion.index == 0 else f"iteration {champion.index}"
    figures = [KeyFigure("Champion", name, f"of {_counted(last, 'iteration')}")]
    for test in champion.paired:
        if (test.split, test.against) == ("test", "base"):
            kind = "Direct gain" if test.dataset == config.problems.dataset else "Transfer gain"
            detail = f"on {test.dataset}, {_interval(test)}"
            figures.append(KeyFigure(kind, f"{100 * test.difference:+.1f} points", detail))
    tokens = sum(record.search.get("tokens_generated", 0.0) for record in result.records)
    if tokens:
        rollouts = sum(record.search.get("num_rollouts", 0.0) for record in result.records)
        figures.append(KeyFigure("Tokens searched", _short(tokens), f"in {rollouts:,.0f} rollouts" if rollouts else ""))
    return [*figures, KeyFigure("Time", format_seconds(result.wall_s), "from start to end")]


def sampled_rows(records: Sequence[IterationRecord]) -> tuple[list[str], list[list[str]]]:
    """Names of what was measured on samples, and a row per iteration and test set: both names, then per cents."""
    reports = [(record.index, r) for record in records for r in record.evaluations if r.split == "test" and r.sampled]
    names = list(dict.fromkeys(name for _, report in reports for name in report.sampled))
    rows = [
        [
            "base" if index == 0 else str(index),
            report.dataset,
            *(_number(None if name not in report.sampled else 100 * report.sampled[name], ".1f") for name in names),
        ]
        for index, report in reports
    ]
    return names, rows


def transfer_sentence(config: PipelineConfig, result: RunResult) -> str:
    """How much of the champion's direct gain its other test sets show; nothing where that is no question."""
    tests = {t.dataset: t for t in _champion(result).paired if (t.split, t.against) == ("test", "base")}
    direct = tests.pop(config.problems.dataset, None)
    if direct is None or direct.difference <= 0 or not tests:
        return ""
    shares = [f"{100 * t.difference / direct.difference:.0f} % of it on {name}" for name, t in tests.items()]
    return f"The champion gains {100 * direct.difference:.1f} points where it was trained, and {', '.join(shares)}."


def duration_rows(records: Sequence[IterationRecord]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The stages, and for every iteration its name and the seconds of each stage and of all."""
    stages = list(dict.fromkeys(stage for record in records for stage in record.seconds))
    rows = [
        (
            "base" if record.index == 0 else str(record.index),
            [*(_number(record.seconds.get(stage), ".1f") for stage in stages), f"{sum(record.seconds.values()):.0f}"],
        )
        for record in records
    ]
    return stages, rows


def gate_rows(trials: Sequence[GateTrial], own: GateConfig) -> list[GateRow]:
    """One row per minimum gain, one cell per patience."""
    patiences = tuple(sorted({trial.patience for trial in trials}))
    rows = []
    for min_gain in sorted({trial.min_gain for trial in trials}):
        mine = sorted((t for t in trials if t.min_gain == min_gain), key=lambda trial: trial.patience)
        cells = tuple(_gate_cell(t, (t.min_gain, t.patience) == (own.min_gain, own.patience)) for t in mine)
        rows.append(GateRow(_counted(100 * min_gain, "point"), patiences, cells))
    return rows


def environment_rows(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and value of hardware, code and versions."""
    names = {"mlflow.source.git.commit": "commit", "hardware/cpu": "CPU", "hardware/gpu": "GPU"}
    names |= {"hardware/memory_gib": "memory, GiB", "version/python": "Python"}
    values = dict(environment)
    if values.pop("git/dirty", "") == "true" and "mlflow.source.git.commit" in values:
        values["mlflow.source.git.commit"] = f"{values['mlflow.source.git.commit'][:12]} and uncommitted changes"
    return [(names.get(name, name.rpartition("/")[2]), value) for name, value in sorted(values.items())]


def format_seconds(seconds: float) -> str:
    """A duration for people.

    Example: 208 is ``3 min 28 s``, 7300 is ``2 h 1 min``.
    """
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _champion(result: RunResult) -> IterationRecord:
    return next((r for r in result.records if r.index == result.decision.champion), result.records[0])


def _interval(test: PairedTest) -> str:
    return f"95 % interval {100 * test.interval[0]:+.1f} to {100 * test.interval[1]:+.1f}"


def _gate_cell(trial: GateTrial, is_own: bool) -> GateCell:
    stop = "goes on" if trial.stopped_after is None else f"stops after {trial.stopped_after}"
    champion = "the base" if trial.champion == 0 else str(trial.champion)
    return GateCell(stop, champion, is_own)


def _short(number: float) -> str:
    """A large number in few digits: ``546 k``, ``1.2 M``."""
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1000:,.0f} k" if number < 999_500 else f"{number / 1e6:,.1f} M"
