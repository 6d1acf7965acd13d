"""From what the engine returned to what the tree can hold: steps within the limits, and an outcome.

One idea: a rollout that went wrong is data. One that is too long, too deep, or that the engine
gave up on is cut at the limit and kept as TRUNCATED: it says that this way leads nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pipeline_lib.config import SearchConfig
from pipeline_lib.policy.protocol import Codec, FinishReason, SampleResult
from pipeline_lib.search.steps import Step
from pipeline_lib.types import Grade, Int32Array, Outcome

Splitter = Callable[[Int32Array], list[Step]]

OUTCOME_OF = {
    Grade.CORRECT: Outcome.CORRECT,
    Grade.WRONG: Outcome.WRONG,
    Grade.UNPARSED: Outcome.UNPARSED,
    Grade.TIMEOUT: Outcome.UNPARSED,
}


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion, ready to be inserted into its tree.

    Args:
        steps: the steps within the limits; none when the engine failed before the first token.
        outcome: how it ended; OPEN while its answer is still to be graded.
        num_tokens: tokens that were sampled, also those past a limit.
        timed_out: its grading passed the deadline.
        end_token_id: the token that ended it; None where none did or the engine does not tell.
    """

    steps: tuple[Step, ...]
    outcome: Outcome
    num_tokens: int
    timed_out: bool = False
    end_token_id: int | None = None

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    @property
    def reward(self) -> float:
        return 1.0 if self.outcome is Outcome.CORRECT else 0.0

    def with_grade(self, grade: Grade) -> Rollout:
        """The same rollout with the outcome that `grade` stands for."""
        return replace(self, outcome=OUTCOME_OF[grade], timed_out=grade is Grade.TIMEOUT)


def rollout_from_result(
    result: SampleResult, split: Splitter, codec: Codec, *, depth: int, config: SearchConfig
) -> Rollout:
    """Splits a result into steps and cuts it at the first limit it passes.

    A result without tokens has one empty step, so that the stop itself becomes a child; a failure
    without tokens has none and counts against the node it was drawn at.

    Args:
        result: what the engine returned for one request.
        split: from sampled tokens to steps, see `split_steps`.
        codec: decodes the part of a step that is within the limit.
        depth: steps already on the path.
        config: `max_depth` and `max_step_tokens` are used.
    """
    num_tokens = len(result.token_ids)
    if num_tokens == 0:
        return _empty_rollout(result)
    steps = split(result.token_ids)
    kept = steps[: config.max_depth - depth]
    too_long = next((i for i, step in enumerate(kept) if step.num_tokens > config.max_step_tokens), None)
    if too_long is not None:
        head = kept[too_long].token_ids[: config.max_step_tokens]
        kept = [*kept[:too_long], Step(codec.decode(head), head)]
    is_whole = result.finish_reason is FinishReason.STOP and len(kept) == len(steps) and too_long is None
    if not is_whole:
        return Rollout(tuple(kept), Outcome.TRUNCATED, num_tokens)
    return Rollout(tuple(kept), Outcome.OPEN, num_tokens, end_token_id=result.end_token_id)


def _empty_rollout(result: SampleResult) -> Rollout:
    if result.finish_reason is FinishReason.ERROR:
        return Rollout((), Outcome.TRUNCATED, 0)
    nothing = Step("", np.zeros(0, dtype=np.int32))
    if result.finish_reason is FinishReason.STOP:
        return Rollout((nothing,), Outcome.OPEN, 0, end_token_id=result.end_token_id)
    return Rollout((nothing,), Outcome.TRUNCATED, 0)
