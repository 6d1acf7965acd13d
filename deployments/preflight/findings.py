"""What the checks before a run find out: for those that come later, and for the reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from deployments.preflight.rehearsal import Rehearsal
from pipeline_lib.policy.protocol import Codec
from pipeline_lib.problems.pools import ProblemPool

Verdict = Literal["ok", "problem", "skipped"]


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One line of `coppice check`.

    Args:
        check: name of the check.
        verdict: ``skipped`` where an earlier check did not find what this one needs.
        text: what was found, what is wrong and how to put it right, or what is missing.
    """

    check: str
    verdict: Verdict
    text: str


@dataclass(slots=True)
class Findings:
    """What the checks so far have found; empty or None until then.

    Args:
        problems: by dataset; those to train on under ``training``.
        tokenizer: with its chat template.
        rehearsal: what one problem cost.
    """

    problems: dict[str, ProblemPool] = field(default_factory=dict)
    tokenizer: Codec | None = None
    rehearsal: Rehearsal | None = None

    @property
    def training_problems(self) -> ProblemPool | None:
        """Those that an iteration draws from."""
        return self.problems.get("training")
