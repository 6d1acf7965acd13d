"""Everything that can be known about a run before it costs a GPU hour.

The checks come in the order in which a run would fail at them, and each is one line. A check that needs what an
earlier one could not find is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deployments.command.output.errors import describe_error
from deployments.preflight.findings import CheckLine, Findings
from deployments.preflight.model_checks import check_memory, check_model
from deployments.preflight.problem_checks import check_gold_answers, check_problems, check_prompts
from deployments.preflight.run_checks import check_cost, check_stages, check_tracking
from pipeline_lib.config import PipelineConfig, Settings


@dataclass(frozen=True, slots=True)
class PreflightCheck:
    """One check.

    Args:
        name: a word or two, for the terminal.
        needs: fields of `Findings` that earlier checks fill.
        run: returns what it found in one line, and keeps in `Findings` what later checks need; raises what is wrong.
    """

    name: str
    needs: tuple[str, ...]
    run: Callable[[PipelineConfig, Settings, Findings], str]


CHECKS = (
    PreflightCheck("problems", (), check_problems),
    PreflightCheck("gold answers", ("problems",), check_gold_answers),
    PreflightCheck("model", (), check_model),
    PreflightCheck("prompts", ("training_problems",), check_prompts),
    PreflightCheck("memory", (), check_memory),
    PreflightCheck("tracking", (), check_tracking),
    PreflightCheck("one problem", ("training_problems", "tokenizer"), check_stages),
    PreflightCheck("cost", ("rehearsal",), check_cost),
)


def run_checks(config: PipelineConfig, settings: Settings) -> Iterator[CheckLine]:
    """The lines of all checks, each as soon as it is known."""
    findings = Findings()
    for check in CHECKS:
        missing = [need for need in check.needs if not getattr(findings, need)]
        if missing:
            yield CheckLine(check.name, "skipped", f"needs the {missing[0].replace('_', ' ')}")
            continue
        try:
            yield CheckLine(check.name, "ok", check.run(config, settings, findings))
        except Exception as error:  # whatever goes wrong here would have gone wrong in the run
            yield CheckLine(check.name, "problem", describe_error(error)[0].removeprefix("coppice: "))
