from __future__ import annotations

import io

import pytest
from report_fixtures import make_record, make_result, with_samples
from rich.console import Console

from deployments.command.output.closing import print_reports, print_result, ui_lines
from deployments.command.output.run_tables import figure
from deployments.command.output.summary import summary_json
from pipeline_lib.config import EvaluationConfig, PipelineConfig, Settings
from pipeline_lib.types import IterationRecord


def test_the_last_lines_name_the_servers_in_use_and_no_password() -> None:
    prefect, mlflow = ui_lines("postgresql://me:secret@host/db", None)
    assert prefect.endswith("coppice up   # then http://127.0.0.1:4200")
    assert "--backend-store-uri postgresql://host/db " in mlflow
    assert "--backend-store-uri 'sqlite:////my home/mlflow.db' " in ui_lines("sqlite:////my home/mlflow.db", None)[1]
    prefect, mlflow = ui_lines("http://me:secret@host:5000", "http://127.0.0.1:4711")
    assert prefect.split() == ["stages", "and", "artifacts:", "http://127.0.0.1:4711"]
    assert mlflow.split() == ["metrics", "and", "models:", "http://host:5000"]
    assert ui_lines("http://host:5000", None, named_by="MLFLOW_TRACKING_URI")[1].endswith("   # MLFLOW_TRACKING_URI")


SAMPLING = PipelineConfig(evaluation=EvaluationConfig(num_samples=4, sampled_problems=50))


def test_the_closing_tables_show_samples_beside_greedy_where_there_are_any() -> None:
    def shown(*records: IterationRecord) -> str:
        console = Console(file=io.StringIO(), width=160)
        settings = Settings(tracking_uri="http://host")
        print_result(make_result(records), SAMPLING, settings=settings, prefect_page=None, console=console)
        print_reports(records[1].evaluations, console=console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    text = shown(with_samples(make_record(0)), with_samples(make_record(1), 0.6))
    assert "4 samples at temperature 1 for each of the first 50 problems" in text
    assert text.count("avg@4") == 2
    assert text.count("60.0 ±5.0") == 2 + 3  # two test sets, and of the policy alone the validation set too
    assert text.index("avg@4") < text.index("informative")  # the results stand last
    plain = shown(make_record(0), make_record(1))
    assert "avg@" not in plain
    assert "samples" not in plain


def test_the_summary_has_samples_and_what_an_iteration_started_from() -> None:
    first = with_samples(make_record(1), 0.6).model_copy(update={"parent": 0})
    summary = summary_json(make_result([with_samples(make_record(0)), first]), SAMPLING)
    expected = {"mean": 0.6, "avg@4": 0.6, "interval": [0.55, 0.65], "maj@4": 0.7, "pass@4": 0.9}
    [iteration] = summary["iterations"]
    assert iteration["sampled"]["tiny-word"] == {name: pytest.approx(value) for name, value in expected.items()}
    assert summary["champion"]["sampled"] == iteration["sampled"]
    assert summary["base_sampled"]["tiny-algebra"]["avg@4"] == 0.4
    assert iteration["parent"] == 0


def test_a_metric_has_four_digits_and_no_power_of_ten() -> None:
    assert [figure(value) for value in (16240.0, 0.58333, 1234567.0, 0.0, -16240.4)] == [
        "16,240",
        "0.5833",
        "1,234,567",
        "0",
        "-16,240",
    ]
    assert (figure(16240.0, sign="+"), figure(0.625, sign="+")) == ("+16,240", "+0.625")
