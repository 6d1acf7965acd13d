from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from report_fixtures import make_record, make_result

from pipeline_lib.config import PipelineConfig
from pipeline_lib.metrics import update_points
from pipeline_lib.report import figures_of, records_table, render_figures, render_page
from pipeline_lib.report.page import changed_settings
from pipeline_lib.report.rows import DASH


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loaded += [url for key in ("src", "href") if (url := values.get(key)) and not url.startswith("data:")]
        self.scripts += tag == "script"


def test_rows_hold_the_numbers_of_the_records_and_a_dash_where_there_is_none() -> None:
    base, first = records_table([make_record(0), make_record(1)], make_result([make_record(0)]).decision)
    assert base.name == "base"
    assert base.accuracies == {"tiny-word": "50.0 ±10.0", "tiny-algebra": "50.0 ±10.0"}
    assert (base.informative_share, base.variance, base.kl, base.tokens) == (DASH,) * 4
    assert (first.informative_share, first.variance, first.kl, first.tokens) == ("40 %", "0.125", "0.062", "12,345")
    assert (first.seconds, base.decision, first.decision) == ("5", "", "champion")


def test_an_iteration_that_the_audit_stopped_is_marked() -> None:
    result = make_result([make_record(0), make_record(1, passed=False)], champion=0)
    rows = records_table(result.records, result.decision)
    assert [row.decision for row in rows] == ["champion", "not trained"]
    assert rows[1].accuracies == {"tiny-word": DASH, "tiny-algebra": DASH}


def test_figures_show_accuracy_transfer_training_and_one_histogram_per_audit() -> None:
    figures = figures_of([make_record(0), make_record(1)])
    assert set(figures) == {"accuracy", "transfer", "training", "scores-1"}
    assert {trace.name for trace in figures["accuracy"].data} == {
        "tiny-word, validation",
        "tiny-word, test",
        "tiny-algebra, test",
    }
    assert list(figures["transfer"].data[0].y) == pytest.approx([1.0])
    assert list(figures["scores-1"].data[0].x) == [-0.5, 0.5]
    history = [{"loss": 0.5, "kl": 0.0}, {"loss": 0.25}]
    training = figures_of([make_record(0)], {1: history})["training"]
    assert [list(trace.x) for trace in training.data] == [[1, 2], [1]]
    assert update_points(history)[-1] == ("train/update/loss", 2, 0.25)


def test_the_page_is_one_file_of_at_most_six_megabytes_that_loads_nothing() -> None:
    config = PipelineConfig.model_validate({"seed": 3, "search": {"c_uct": 0.5}})
    text = render_page(config, make_result([make_record(0), make_record(1)]))
    page = Page(text)
    assert page.loaded == []
    assert len(text.encode()) <= 6_000_000
    assert text.count("plotly.js v") == 1
    assert "Champion: iteration 1." in text
    for shown in ("51.0 ±10.0", "search.c_uct", "all iterations done", "4 of 10 problems are informative", "+1.0"):
        assert shown in text


def test_a_stopped_run_says_why_and_what_to_change_and_escapes_it() -> None:
    text = render_page(PipelineConfig(), make_result([make_record(0), make_record(1, passed=False)], champion=0))
    assert "nothing is &lt;informative&gt;" in text
    assert "take easier problems" in text
    assert "Champion: the base." in text


def test_a_page_of_figures_stands_alone() -> None:
    text = render_figures("Iteration <1>", figures_of([make_record(0), make_record(1)]))
    assert Page(text).loaded == []
    assert "Iteration &lt;1&gt;" in text
    assert len(re.findall(r"Plotly\.newPlot\(", text)) >= 4


def test_only_settings_off_their_default_are_listed() -> None:
    config = PipelineConfig.model_validate({"train": {"kl_beta": 0.5}})
    assert changed_settings(config) == [("train.kl_beta", "0.5", "0.1")]
