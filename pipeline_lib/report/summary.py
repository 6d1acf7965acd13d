"""What a report finds beyond its table, in a few lines of Markdown for the orchestrator's page of the flow run.

The findings are those of ``report.html``, which has the charts and trees behind them.
"""

from __future__ import annotations

from pipeline_lib.config import PipelineConfig
from pipeline_lib.report.sanity import CANNOT_TELL, single_iteration_checks
from pipeline_lib.report.signatures import failure_signatures
from pipeline_lib.report.tables import headline, key_figures
from pipeline_lib.types import RunResult


def findings_markdown(config: PipelineConfig, result: RunResult) -> str:
    """Headline, key figures, failure signatures, what one iteration tells, where the page is."""
    lines = [f"## {headline(config, result)}", ""]
    lines += [f"- {figure.name}: **{figure.value}** ({figure.detail})" for figure in key_figures(config, result)]
    for found in failure_signatures(result, config):
        lines += ["", f"**{found.title}** ({found.evidence}). {found.meaning} {found.advice}"]
    if checks := single_iteration_checks(result, config):
        lines += ["", *(f"- {check.question} **{check.verdict}**: {check.evidence}" for check in checks)]
        lines += ["", f"One iteration cannot tell {'; '.join(CANNOT_TELL)}."]
    if result.tracking_run:
        lines += ["", f"The whole report: `report.html` of MLflow run `{result.tracking_run}`."]
    return "\n".join(lines)
