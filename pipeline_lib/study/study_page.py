"""A study as one self-contained HTML page: a figure for each family, then the tables; pure text, classes and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline_lib.report.charts import NUM_SERIES, Chart, iteration_axis, value_axis
from pipeline_lib.study.study_tables import PERCENT, Row, how_to_read, tables_of

STEP_ASIDE = 0.06  # of an iteration: intervals of several methods would cover each other


def study_page(found: Mapping[str, Any]) -> str:
    """The page of what `study_tables.study_json` found."""
    families = dict.fromkeys(row["family"] for row in found["iterations"])
    charts = [
        accuracy_chart(family, [row for row in found["iterations"] if row["family"] == family]) for family in families
    ]
    return _template().render(found=found, lead=how_to_read(found), charts=charts, tables=tables_of(found))


def accuracy_chart(family: str, rows: Sequence[Row]) -> Markup:
    """Accuracy after each iteration, a line for each method, with intervals over seeds.

    Args:
        family: what was trained and tested on.
        rows: of the table of that family.
    """
    shown = [figures for row in rows for figures in row["accuracy"] if figures]
    ends = [PERCENT * end for figures in shown for end in (figures["interval"] or [figures["mean"]])]
    last = max(len(row["accuracy"]) for row in rows) - 1
    chart = Chart(
        f"How accurate is each method on {family}, and after how many iterations?",
        iteration_axis(last),
        value_axis("greedy accuracy, %", max(min(ends), 0.0), min(max(ends), PERCENT)),
    )
    for series, row in enumerate(rows):
        look = "line" if series < NUM_SERIES else "dashed"
        aside = STEP_ASIDE * (series - (len(rows) - 1) / 2)
        points = [(index + aside, figures) for index, figures in enumerate(row["accuracy"]) if figures]
        chart.line([(x, PERCENT * figures["mean"]) for x, figures in points], series, look=look)
        for x, figures in points:
            mean, interval = PERCENT * figures["mean"], figures["interval"]
            reach = None if interval is None else (PERCENT * interval[0], PERCENT * interval[1])
            tip = f"{row['method']}: {mean:.1f} %" + ("" if reach is None else f" [{reach[0]:.1f}, {reach[1]:.1f}]")
            chart.dot((x, mean), series, tip=tip, interval=reach)
        chart.name(row["method"], series, look)
    return chart.render()


@cache
def _template() -> Template:
    environment = Environment(
        loader=PrefixLoader(
            {
                "study": PackageLoader("pipeline_lib.study", "."),
                "report": PackageLoader("pipeline_lib.report.page", "."),
            }
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study/study.html.jinja")
