"""One self-contained HTML page per run: what ran, what came out, and why it ended.

One idea: the page needs nothing from outside itself, so plotly's script is inlined once and every
figure is only its data; a page stays near 5 MB whatever the number of figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from pydantic import BaseModel

from pipeline_lib.config import PipelineConfig
from pipeline_lib.report.figures import Histories, figures_of
from pipeline_lib.report.rows import format_accuracy, records_table, tested_datasets
from pipeline_lib.types import RunResult


def render_page(config: PipelineConfig, result: RunResult, histories: Histories | None = None) -> str:
    """The report of a whole run as one HTML text.

    Args:
        config: what was asked for; settings that differ from the defaults are listed.
        result: what came out.
        histories: iteration to one mapping per update, where known.
    """
    records, decision = result.records, result.decision
    champion = next((record for record in records if record.index == decision.champion), records[0])
    datasets = tested_datasets(records)
    return _template().render(
        title=f"Coppice: {config.problems.dataset}, seed {config.seed}",
        config=config,
        result=result,
        champion=champion,
        datasets=datasets,
        gains=[(name, _base_and_champion(result, name)) for name in datasets],
        rows=records_table(records, decision),
        changed=changed_settings(config),
        figures={name: _fragment(figure) for name, figure in figures_of(records, histories).items()},
        plotlyjs=Markup(get_plotlyjs()),
    )


def render_figures(title: str, figures: Mapping[str, go.Figure]) -> str:
    """A bare page of figures, for an artifact viewer."""
    style = "body{font-family:system-ui,sans-serif;margin:2rem auto;max-width:56rem}"
    heading = Markup.escape(title)
    head = f"<title>{heading}</title><style>{style}</style><script>{get_plotlyjs()}</script>"
    body = "".join(_fragment(figure) for figure in figures.values())
    return f'<!doctype html><html lang="en"><meta charset="utf-8">{head}<h1>{heading}</h1>{body}</html>'


def changed_settings(config: PipelineConfig) -> list[tuple[str, str, str]]:
    """(name, value, default) of every setting that is not at its default."""
    return _changes(config, type(config)(), "")


def _changes(group: BaseModel, default: BaseModel, prefix: str) -> list[tuple[str, str, str]]:
    changes: list[tuple[str, str, str]] = []
    for name in type(group).model_fields:
        value, usual = getattr(group, name), getattr(default, name)
        if isinstance(value, BaseModel):
            changes += _changes(value, usual, f"{prefix}{name}.")
        elif value != usual:
            changes.append((prefix + name, str(value), str(usual)))
    return changes


def _base_and_champion(result: RunResult, dataset: str) -> Sequence[str]:
    by_index = {record.index: record for record in result.records}
    return [
        format_accuracy(by_index[index].evaluation(dataset, "test") if index in by_index else None)
        for index in (0, result.decision.champion)
    ]


def _fragment(figure: go.Figure) -> Markup:
    options = {"displaylogo": False, "responsive": True}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=options))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("pipeline_lib.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")
