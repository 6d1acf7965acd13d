"""Charts from records: accuracy, transfer, training, scores, the gate's thresholds.

Each chart answers one question, which is its title; what the records cannot fill is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from pipeline_lib.report.charts import Axis, Chart, iteration_axis, iteration_label, log_axis, value_axis
from pipeline_lib.report.tables import tested_datasets
from pipeline_lib.types import AuditReport, EvalReport, GateTrial, IterationRecord, PairedTest

Histories = Mapping[int, Sequence[Mapping[str, float]]]
VALIDATION_SHIFT, TEST_SHIFT = -0.07, 0.07  # of an iteration: intervals beside, not on each other
SMOOTHED_ABOVE = 60  # updates; below, every update is drawn


def figures_of(
    records: Sequence[IterationRecord], histories: Histories | None = None, *, dataset: str | None = None
) -> dict[str, Markup]:
    """Every chart that the records can fill, by a short name.

    Args:
        records: one iteration's, or all with the base first.
        histories: iteration to one mapping per update, with ``loss`` and ``kl``.
        dataset: the dataset that was trained on, for the transfer chart; None takes the validated one.
    """
    figures = {f"accuracy-{name}": accuracy_chart(records, name) for name in _measured_datasets(records)}
    trained = dataset or _validated_dataset(records)
    if any(test.against == "base" and test.split == "test" for record in records for test in record.paired):
        figures["transfer"] = transfer_chart(records, trained)
    for name, title, unit in (
        ("loss", "Does training reach its objective?", "loss"),
        ("kl", "How far does training move the policy?", "KL to its start, nats per token"),
    ):
        if any(name in update for history in (histories or {}).values() for update in history):
            figures[name] = training_chart(histories or {}, name, title, unit)
    audits = {record.index: record.audit for record in records if record.audit is not None}
    if len(audits) > 1:
        figures["informative"] = problems_chart(audits)
        figures["variance"] = variance_chart(audits)
    figures |= {f"scores-{index}": score_chart(audit, index) for index, audit in audits.items()}
    return figures


def accuracy_chart(records: Sequence[IterationRecord], dataset: str) -> Markup:
    """Greedy accuracy on one dataset per iteration with 95 % intervals; validation dashed and hollow, test solid."""
    series = {
        split: [(record.index, report) for record in records if (report := record.evaluation(dataset, split))]
        for split in ("validation", "test")
    }
    reports = [report for points in series.values() for _, report in points]
    low, high = min(r.interval[0] for r in reports), max(r.interval[1] for r in reports)
    axis = value_axis("greedy accuracy, %", 100 * low, 100 * high)
    chart = Chart(f"Does it answer more {dataset} problems?", _iterations(records), axis)
    position = _measured_datasets(records).index(dataset)
    for split, points in series.items():
        look, shift = ("full", TEST_SHIFT) if split == "test" else ("hollow", VALIDATION_SHIFT)
        if not points:
            continue
        chart.name("test, only reported" if split == "test" else "validation, read by the gate", position, look)
        beside = shift if all(series.values()) else 0.0
        line = [(index + beside, 100 * report.accuracy) for index, report in points]
        chart.line(line, position, look="line" if split == "test" else "dashed")
        for place, (index, report) in zip(line, points, strict=True):
            interval = (100 * report.interval[0], 100 * report.interval[1])
            chart.dot(place, position, tip=_accuracy_tip(index, report), interval=interval, look=look)
    return chart.render()


def transfer_chart(records: Sequence[IterationRecord], trained: str | None) -> Markup:
    """Points gained over the base on the same test problems, by dataset: trained on, and never trained on."""
    gains = {
        name: [(record.index, test) for record in records if (test := _gain(record, name))]
        for name in tested_datasets(records)
    }
    tests = [test for points in gains.values() for _, test in points]
    low, high = min(test.interval[0] for test in tests), max(test.interval[1] for test in tests)
    axis = value_axis("points over the base", 100 * min(low, 0.0), 100 * max(high, 0.0))
    chart = Chart("Does what it learns carry over?", _iterations(records, first=1), axis)
    for position, (name, points) in enumerate(gains.items()):
        shift = 0.14 * (position - (len(gains) - 1) / 2)
        chart.name(f"{name}, {'trained on' if name == trained else 'never trained on'}", position, "full")
        line = [(index + shift, 100 * test.difference) for index, test in points]
        chart.line(line, position)
        for place, (index, test) in zip(line, points, strict=True):
            interval = (100 * test.interval[0], 100 * test.interval[1])
            tip = f"{name}, iteration {index}\n{_gain_tip(test)}"
            chart.dot(place, position, tip=tip, interval=interval)
    return chart.render()


def training_chart(histories: Histories, metric: str, title: str, unit: str) -> Markup:
    """One metric at every update, one colour per iteration; long histories as running means."""
    curves = {
        index: [
            (update, metrics[metric])
            for update, metrics in enumerate(history, 1)
            if math.isfinite(metrics.get(metric, math.nan))
        ]
        for index, history in sorted(histories.items())
    }
    curves = {index: smooth(points) for index, points in curves.items() if points}
    values = [value for points in curves.values() for _, value in points]
    last = max(points[-1][0] for points in curves.values())
    floor = min(values) if metric == "loss" else 0.0
    chart = Chart(title, value_axis("update", 0, last, vertical=False), value_axis(unit, floor, max(values)))
    for index, points in curves.items():
        chart.name(f"iteration {index}", index - 1)
        chart.line(points, index - 1)
        chart.dot(points[-1], index - 1, tip=f"iteration {index}\n{metric} {points[-1][1]:.3g} at the end")
    return chart.render()


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `SMOOTHED_ABOVE` points: means over equal stretches, each at its last update."""
    if len(points) <= SMOOTHED_ABOVE:
        return list(points)
    ends = [round(len(points) * (i + 1) / SMOOTHED_ABOVE) for i in range(SMOOTHED_ABOVE)]
    stretches = [points[start:end] for start, end in pairwise([0, *ends])]
    return [(stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches]


def problems_chart(audits: Mapping[int, AuditReport]) -> Markup:
    """Share of the problems that are informative, all right and all wrong, stacked per iteration."""
    chart = Chart(
        "How many problems still teach something?",
        iteration_axis(max(audits), first=min(audits)),
        value_axis("problems, %", 0, 100),
    )
    kinds = (
        ("informative", "num_informative", 0),
        ("all right", "num_all_correct", 2),
        ("all wrong", "num_all_wrong", 1),
    )
    for name, _, series in kinds:
        chart.name(name, series, "bar")
    for index, audit in audits.items():
        top = 100.0
        for name, field, series in reversed(kinds):
            share = 100 * getattr(audit, field) / audit.num_problems
            tip = f"iteration {index}\n{getattr(audit, field)} of {audit.num_problems} problems {name}"
            chart.bar((index - 0.3, index + 0.3), top, series, tip=tip)
            top -= share
    return chart.render()


def variance_chart(audits: Mapping[int, AuditReport]) -> Markup:
    """Variance of the step scores per iteration."""
    axis = value_axis("variance of the scores", 0, max(audit.variance for audit in audits.values()))
    chart = Chart("Do the scores keep their spread?", iteration_axis(max(audits), first=min(audits)), axis)
    points = [(float(index), audit.variance) for index, audit in audits.items()]
    chart.line(points, 0)
    for point in points:
        chart.dot(point, 0, tip=f"iteration {point[0]:.0f}\nvariance {point[1]:.3g}")
    return chart.render()


def score_chart(audit: AuditReport, index: int) -> Markup:
    """Histogram of the step scores; a single spike at 0 means that there is nothing to learn from."""
    edges, counts = audit.histogram.edges, audit.histogram.counts
    horizontal = value_axis("score of a step", edges[0], edges[-1], vertical=False)
    chart = Chart(f"Iteration {index}: do the scores tell steps apart?", horizontal, log_axis("steps", max(counts)))
    for count, (low, high) in zip(counts, pairwise(edges), strict=True):
        if count:
            series = 0 if low + high > 0 else 1
            if low < 0 < high:
                series = 2
            chart.bar((low, high), count, series, tip=f"{low:.2g} to {high:.2g}\n{count:,} steps")
    for name, series in (("better than its siblings", 0), ("no difference", 2), ("worse", 1)):
        chart.name(name, series, "bar")
    return chart.render()


def gate_chart(records: Sequence[IterationRecord], dataset: str, trials: Sequence[GateTrial]) -> Markup:
    """Validation accuracy per iteration, and what each had to exceed under several minimum gains."""
    points = [(record.index, report) for record in records if (report := record.evaluation(dataset, "validation"))]
    levels = {trial.min_gain: trial.to_beat for trial in trials}
    values = [value for level in levels.values() for value in level.values()] + [r.accuracy for _, r in points]
    axis = value_axis("validation accuracy, %", 100 * min(values), 100 * max(values))
    chart = Chart("Which gain would have counted?", _iterations(records), axis)
    for position, (min_gain, to_beat) in enumerate(levels.items()):
        chart.name(f"to beat with a minimum of {100 * min_gain:g}", position, "dashed")
        chart.steps([(float(index), 100 * value) for index, value in to_beat.items()], position)
    chart.name("measured", 0, "ink")
    for index, report in points:
        chart.dot((index, 100 * report.accuracy), 0, tip=_accuracy_tip(index, report), look="ink")
    return chart.render()


def _iterations(records: Sequence[IterationRecord], first: int | None = None) -> Axis:
    indices = [record.index for record in records]
    return iteration_axis(max(indices), first=min(indices) if first is None else first)


def _measured_datasets(records: Sequence[IterationRecord]) -> list[str]:
    """Every dataset with a report, validated or tested, in order of appearance."""
    return list(dict.fromkeys(report.dataset for record in records for report in record.evaluations))


def _validated_dataset(records: Sequence[IterationRecord]) -> str | None:
    return next((r.dataset for record in records for r in record.evaluations if r.split == "validation"), None)


def _gain(record: IterationRecord, dataset: str) -> PairedTest | None:
    wanted = (dataset, "test", "base")
    return next((test for test in record.paired if (test.dataset, test.split, test.against) == wanted), None)


def _accuracy_tip(index: int, report: EvalReport) -> str:
    low, high = report.interval
    name = "base" if index == 0 else f"iteration {iteration_label(index)}"
    return (
        f"{name}, {report.split}\n{100 * report.accuracy:.1f} % of {report.num_problems}, "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    )


def _gain_tip(test: PairedTest) -> str:
    low, high = test.interval
    return (
        f"{100 * test.difference:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}\n"
        f"{test.num_fixed} fixed, {test.num_broken} broken"
    )
