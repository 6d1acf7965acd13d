"""Settings of the outside baseline: those in which GRPO differs from a run; all else is the run's own."""

from __future__ import annotations

from pydantic import Field

from pipeline_lib.config.group import ConfigGroup


class GrpoConfig(ConfigGroup):
    """Group-relative policy optimisation, as TRL does it; what is not here is TRL's default.

    Prompts, sampling, the adapter's shape, device and grader are those of the run that it is compared with.
    """

    learning_rate: float = Field(
        3e-4, gt=0, description="AdamW's rate, constant. Our choice: 1e-3 collapsed on the tiny base, see LOG.md."
    )
    rollouts_per_problem: int = Field(
        8, ge=2, description="Answers that are compared with each other: a group. TRL's default."
    )
    problems_per_update: int = Field(8, ge=1, description="Problems behind one optimizer update. Our choice.")
    beta: float = Field(0.0, ge=0, description="Weight of the KL against the base in the loss. TRL's default.")
    rollouts_per_pass: int = Field(
        16, ge=1, description="Rollouts in one forward and backward pass, at most; bounds memory and changes no result."
    )

    @property
    def rollouts_per_update(self) -> int:
        """Answers that are sampled, graded and trained on once."""
        return self.rollouts_per_problem * self.problems_per_update

    @property
    def pass_size(self) -> int:
        """Rollouts in each pass, so that all passes of an update are alike."""
        total = self.rollouts_per_update
        return max(size for size in range(1, min(self.rollouts_per_pass, total) + 1) if total % size == 0)
