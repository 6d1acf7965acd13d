"""Records as rows of text: the results table, the same on the terminal and on the page, and the page's smaller ones.

A number that was not measured is a dash, never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline_lib.config import EvaluationConfig, PipelineConfig
from pipeline_lib.report.material import KindAccuracy
from pipeline_lib.types import EvalReport, GateDecision, IterationRecord, PairedTest, RunResult

DASH = "–"
GREEDY, AVERAGE = "greedy", "avg@"
ALIAS = "mean"  # of the average, and its only name in runs of version 0.1.0


@dataclass(frozen=True, slots=True)
class IterationRow:
    """One iteration as text; what was not measured is a dash.

    Args:
        name: ``base`` or the iteration's number, with the one it started from where that is not the one before.
        accuracies: test accuracy ± half its 95 % interval in points, by dataset.
        averages: the same of the mean of samples; without datasets where nothing was sampled.
        informative_share: problems with right and wrong rollouts, in per cent.
        variance: of the step scores.
        kl: mean KL of training, nats per scored token.
        tokens: tokens that the search sampled.
        seconds: of all stages together.
        decision: ``champion``, ``not trained`` or nothing.
    """

    name: str
    accuracies: dict[str, str]
    averages: dict[str, str]
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


def tested_datasets(records: Sequence[IterationRecord]) -> list[str]:
    """Names of all datasets with a test report, in order of appearance."""
    return list(dict.fromkeys(report.dataset for report in tested_reports(records)))


def tested_reports(records: Sequence[IterationRecord]) -> list[EvalReport]:
    """The reports of all test sets, iteration by iteration."""
    return [report for record in records for report in record.evaluations if report.split == "test"]


def records_table(records: Sequence[IterationRecord], decision: GateDecision | None) -> list[IterationRow]:
    """One `IterationRow` per record; the decision's champion is marked, without a decision none is."""
    datasets, champion = tested_datasets(records), None if decision is None else decision.champion
    sampled = average_name(tested_reports(records)) is not None
    return [_row(record, datasets, champion, sampled=sampled) for record in records]


def format_accuracy(report: EvalReport | None) -> str:
    """Accuracy in per cent with half the width of its interval in points.

    Example: accuracy 0.5 with interval (0.45, 0.55) is ``50.0 ±5.0``.
    """
    if report is None:
        return DASH
    return _with_interval(report.accuracy, report.interval)


def format_kind(kind: KindAccuracy, iteration: int) -> str:
    """The same of one kind of problem; a dash where that iteration was not evaluated."""
    if iteration not in kind.num_correct:
        return DASH
    return _with_interval(kind.num_correct[iteration] / kind.num_problems, kind.intervals[iteration])


def format_average(report: EvalReport | None) -> str:
    """The same of the mean of a report's samples; a dash where nothing was sampled."""
    name = average_name([report]) if report is not None else None
    return DASH if report is None or name is None else _with_interval(report.sampled[name], report.sampled_interval)


def average_name(reports: Iterable[EvalReport]) -> str | None:
    """What the mean of samples is called, ``avg@4``; None where no report has any."""
    return next((name for report in reports for name in report.sampled if name.startswith(AVERAGE)), None)


def _with_interval(share: float, interval: tuple[float, float] | None) -> str:
    return f"{100 * share:.1f}" + (f" ±{50 * (interval[1] - interval[0]):.1f}" if interval else "")


def _row(record: IterationRecord, datasets: Sequence[str], champion: int | None, *, sampled: bool) -> IterationRow:
    audit = record.audit
    return IterationRow(
        name=_name(record),
        accuracies={name: format_accuracy(record.evaluation(name, "test")) for name in datasets},
        averages={name: format_average(record.evaluation(name, "test")) for name in datasets if sampled},
        informative_share=f"{100 * audit.informative_share:.0f} %" if audit else DASH,
        variance=f"{audit.variance:.3g}" if audit else DASH,
        kl=format_number(record.train.get("kl"), ".3f"),
        tokens=format_number(record.search.get("tokens_generated"), ",.0f"),
        seconds=format_number(sum(record.seconds.values()) or None, ".0f"),
        decision=_decision(record, is_champion=record.index == champion),
    )


def _name(record: IterationRecord) -> str:
    """``3 (from 1)`` where the iteration before, 2, was not what it started from."""
    if record.parent is None or record.parent == record.index - 1:
        return "base" if record.index == 0 else str(record.index)
    return f"{record.index} (from {record.parent or 'base'})"


def format_number(value: float | None, spec: str) -> str:
    """A number by a format specification; a dash for None and nan."""
    return DASH if value is None or math.isnan(value) else format(value, spec)


def _decision(record: IterationRecord, *, is_champion: bool) -> str:
    if record.audit is not None and not record.audit.passed:
        return "not trained"
    return "champion" if is_champion else ""


def counted(number: float, noun: str) -> str:
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
    return f"{dataset}: {gain} in {counted(champion.index, 'iteration')}"


def key_figures(config: PipelineConfig, result: RunResult) -> list[KeyFigure]:
    """The champion, its gain on each test set, what it cost."""
    champion, last = _champion(result), result.records[-1].index
    name = "the base" if champion.index == 0 else f"iteration {champion.index}"
    figures = [KeyFigure("Champion", name, f"of {counted(last, 'iteration')}")]
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


def samples_in_words(config: EvaluationConfig) -> str:
    """How many samples a problem gets and how they are drawn: ``4 samples at temperature 0.6 and top_p 0.9``."""
    nucleus = f" and top_p {config.top_p:g}" if config.top_p < 1 else ""
    return f"{config.num_samples} samples at temperature {config.temperature:g}{nucleus}"


def sampled_rows(records: Sequence[IterationRecord]) -> tuple[list[str], list[list[str]]]:
    """Names of what was measured, and a row per iteration and test set with samples: both names, then per cents."""
    names = sampled_names(tested_reports(records))
    rows = [
        ["base" if record.index == 0 else str(record.index), report.dataset, *sampled_cells(report, names)]
        for record in records
        for report in tested_reports([record])
        if report.sampled
    ]
    return names, rows


def sampled_names(reports: Sequence[EvalReport]) -> list[str]:
    """``greedy`` and every figure of the reports' samples; none where nothing was sampled."""
    names = list(dict.fromkeys(name for report in reports for name in report.sampled))
    if average_name(reports) is not None:
        names = [name for name in names if name != ALIAS]
    return [GREEDY, *names] if names else []


def sampled_cells(report: EvalReport, names: Sequence[str]) -> list[str]:
    """One report's figures in per cent, in the order of `names`; greedy and the average with their intervals."""
    cells = {name: _with_interval(value, None) for name, value in report.sampled.items()}
    cells |= {name: format_average(report) for name in cells if name.startswith(AVERAGE)}
    return [{**cells, GREEDY: format_accuracy(report)}.get(name, DASH) for name in names]


def transfer_sentence(config: PipelineConfig, result: RunResult) -> str:
    """How much of the champion's direct gain its other test sets show; nothing where that is no question."""
    tests = {t.dataset: t for t in _champion(result).paired if (t.split, t.against) == ("test", "base")}
    direct = tests.pop(config.problems.dataset, None)
    if direct is None or direct.difference <= 0 or not tests:
        return ""
    shares = [f"{100 * t.difference / direct.difference:.0f} % of it on {name}" for name, t in tests.items()]
    return f"The champion gains {100 * direct.difference:.1f} points where it was trained, and {', '.join(shares)}."


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


def _short(number: float) -> str:
    """A large number in few digits: ``546 k``, ``1.2 M``."""
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1000:,.0f} k" if number < 999_500 else f"{number / 1e6:,.1f} M"
