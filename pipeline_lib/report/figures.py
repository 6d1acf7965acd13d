"""Plotly figures from records: accuracy, transfer, scores, training, time.

One idea: each figure answers one question, which is its title.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import plotly.graph_objects as go

from pipeline_lib.report.rows import tested_datasets
from pipeline_lib.types import AuditReport, EvalReport, IterationRecord

COLOURS = ("#1b6e53", "#b5541c", "#3b5b92", "#8a5a83", "#7a7a2e")
CURVE_STYLES = {"loss": "solid", "kl": "dot"}
Histories = Mapping[int, Sequence[Mapping[str, float]]]


def figures_of(records: Sequence[IterationRecord], histories: Histories | None = None) -> dict[str, go.Figure]:
    """Every figure that the records can fill, by a short name.

    Args:
        records: iteration 0, the base, first.
        histories: iteration to one mapping per update, with ``loss`` and ``kl``.
    """
    figures: dict[str, go.Figure] = {}
    if any(record.evaluations for record in records):
        figures["accuracy"] = accuracy_figure(records)
    if len(tested_datasets(records)) > 1 and len(records) > 1:
        figures["transfer"] = transfer_figure(records)
    if histories:
        figures["training"] = training_figure(histories)
    elif any("kl" in record.train for record in records):
        figures["training"] = divergence_figure(records)
    for record in records:
        if record.audit is not None and record.audit.histogram.counts:
            figures[f"scores-{record.index}"] = score_figure(record.audit, record.index)
    return figures


def accuracy_figure(records: Sequence[IterationRecord]) -> go.Figure:
    """Greedy accuracy per iteration with 95 % intervals; validation dotted, test solid."""
    figure = _figure("Does each iteration answer more problems?", "iteration", "greedy accuracy (%)")
    series: dict[tuple[str, str], list[tuple[int, EvalReport]]] = {}
    for record in records:
        for report in record.evaluations:
            series.setdefault((report.dataset, report.split), []).append((record.index, report))
    datasets = list(dict.fromkeys(dataset for dataset, _ in series))
    for (dataset, split), points in series.items():
        accuracies = [100 * report.accuracy for _, report in points]
        figure.add_scatter(
            x=[index for index, _ in points],
            y=accuracies,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [100 * r.interval[1] - a for (_, r), a in zip(points, accuracies, strict=True)],
                "arrayminus": [a - 100 * r.interval[0] for (_, r), a in zip(points, accuracies, strict=True)],
                "thickness": 1,
            },
            mode="lines+markers",
            name=f"{dataset}, {split}",
            line={"color": _colour(datasets.index(dataset)), "dash": "solid" if split == "test" else "dot"},
        )
    figure.update_xaxes(dtick=1)
    return figure


def transfer_figure(records: Sequence[IterationRecord]) -> go.Figure:
    """Points gained over the base on every test set, trained on or not."""
    figure = _figure("Does it carry over to the other dataset?", "iteration", "points over the base")
    for position, dataset in enumerate(tested_datasets(records)):
        reports = [(record.index, record.evaluation(dataset, "test")) for record in records]
        known = [(index, report.accuracy) for index, report in reports if report is not None]
        gains = [(index, 100 * (accuracy - known[0][1])) for index, accuracy in known[1:]]
        x, y = [index for index, _ in gains], [gain for _, gain in gains]
        figure.add_bar(x=x, y=y, name=dataset, marker_color=_colour(position))
    figure.update_xaxes(dtick=1)
    return figure


def score_figure(audit: AuditReport, index: int) -> go.Figure:
    """Histogram of the step scores; a single spike at 0 means that there is nothing to learn from."""
    edges, counts = audit.histogram.edges, audit.histogram.counts
    figure = _figure(f"Iteration {index}: do the scores tell steps apart?", "score", "steps (log scale)")
    figure.add_bar(
        x=[(low + high) / 2 for low, high in pairwise(edges)],
        y=list(counts),
        width=[high - low for low, high in pairwise(edges)],
        marker={"color": COLOURS[0], "line": {"width": 1, "color": "white"}},
        name="steps",
    )
    figure.update_yaxes(type="log", dtick=1)
    return figure


def training_figure(histories: Histories) -> go.Figure:
    """Loss (solid) and KL (dotted) at every update, one colour per iteration."""
    figure = _figure("How far did training move the policy?", "update", "loss, KL (nats per token)")
    for position, (index, history) in enumerate(sorted(histories.items())):
        for name, dash in CURVE_STYLES.items():
            points = [(update, metrics[name]) for update, metrics in enumerate(history, 1) if name in metrics]
            x, y = [update for update, _ in points], [value for _, value in points]
            line = {"color": _colour(position), "dash": dash}
            figure.add_scatter(x=x, y=y, mode="lines", name=f"{name}, iteration {index}", line=line)
    return figure


def divergence_figure(records: Sequence[IterationRecord]) -> go.Figure:
    """KL to the previous policy at the end of each iteration's training."""
    figure = _figure("How far did training move the policy?", "iteration", "KL to the previous policy (nats per token)")
    trained = [(record.index, record.train["kl"]) for record in records if "kl" in record.train]
    figure.add_bar(x=[index for index, _ in trained], y=[kl for _, kl in trained], marker_color=COLOURS[1], name="KL")
    figure.update_xaxes(dtick=1)
    return figure


def _figure(title: str, x_title: str, y_title: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "font": {"size": 16}},
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 13},
        height=360,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        legend={"orientation": "h", "y": -0.25},
        showlegend=True,
    )
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title)
    return figure


def _colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]
