"""From what the engine returned to what the tree can hold: steps within the limits, and an outcome.

One idea: a rollout that passes a limit is data. It is cut there, and what it then counts as is one setting, the same
for evaluations: wrong, what its text comes to so far, or nothing. An engine's failure is no rollout at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pipeline_lib.config import ConfigError, Cutoff, SearchConfig, Truncated
from pipeline_lib.policy.protocol import Codec, FinishReason, SampleResult, cutoff_of
from pipeline_lib.search.steps import Step
from pipeline_lib.types import STOPPED, Float32Array, Grade, Int32Array, Outcome

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
        steps: the steps within the limits, at least one.
        outcome: how it ended; OPEN while its answer is still to be graded.
        num_tokens: tokens that were sampled, also those past a limit or a stop string.
        reward: in [0, 1], what is backed up; 1 or 0 unless a verifier gives a number in between.
        timed_out: its grading passed the deadline.
        end_token_id: the token that ended it; `STOPPED` where a stop string did, None where nothing did or the engine
            does not tell.
        cutoff: the first limit that it passed.
        is_ignored: it is neither a visit nor a reward.
    """

    steps: tuple[Step, ...]
    outcome: Outcome
    num_tokens: int
    reward: float = 0.0
    timed_out: bool = False
    end_token_id: int | None = None
    cutoff: Cutoff = Cutoff.NONE
    is_ignored: bool = False

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)

    def with_grade(self, grade: Grade, reward: float | None = None) -> Rollout:
        """The same rollout with the outcome that `grade` stands for.

        Args:
            grade: of its answer.
            reward: in [0, 1], what is backed up; None stands for 1 where the grade is CORRECT, else 0.
        """
        reward = float(grade is Grade.CORRECT) if reward is None else reward
        return replace(self, outcome=OUTCOME_OF[grade], reward=reward, timed_out=grade is Grade.TIMEOUT)


def rollout_from_result(
    result: SampleResult,
    split: Splitter,
    codec: Codec,
    *,
    depth: int,
    max_new_tokens: int,
    config: SearchConfig,
    truncated: Truncated = "wrong",
) -> Rollout:
    """Splits an answer into steps and cuts it at the first limit it passes.

    A result without tokens has one empty step, so that the stop itself becomes a child. Where a stop string ended the
    answer, the last step keeps the tokens that spell it and its text ends with the answer.

    Args:
        result: what the engine returned for one request.
        split: from sampled tokens to steps, see `split_steps`.
        codec: decodes the part of a step that is within the limit.
        depth: steps already on the path.
        max_new_tokens: tokens that the request allowed; fewer in an answer that did not end: the context was full.
        config: `max_depth`, `max_step_tokens` and `selection` are used.
        truncated: what a rollout that passes a limit counts as.

    Raises:
        ValueError: the engine failed; see `policy.redraw`.
        ConfigError: the selection needs log-probabilities, and the engine gives none.
    """
    if result.finish_reason is FinishReason.ERROR:
        raise ValueError(f"{result.request_id}: an engine's failure is no rollout; draw it again")
    steps = split(result.token_ids) if len(result.token_ids) else [Step("", np.zeros(0, dtype=np.int32))]
    if result.num_chars is not None:
        steps = _ended_at(steps, result.num_chars)
    kept = steps[: config.max_depth - depth]
    too_long = next((i for i, step in enumerate(kept) if step.num_tokens > config.max_step_tokens), None)
    if too_long is not None:
        head = kept[too_long].token_ids[: config.max_step_tokens]
        kept = [*kept[:too_long], Step(codec.decode(head), head)]
    if too_long is not None:
        cutoff = Cutoff.STEP
    elif len(kept) < len(steps):
        cutoff = Cutoff.DEPTH
    else:
        cutoff = cutoff_of(result, max_new_tokens)
    if result.logprobs is not None:
        kept = _with_surprisals(kept, result.logprobs)
    elif config.selection == "entropy" and len(result.token_ids):
        raise ConfigError("search.selection=entropy: the engine gives no log-probabilities; choose ucb or frontier")
    is_cut = cutoff is not Cutoff.NONE
    return Rollout(
        tuple(kept),
        Outcome.TRUNCATED if is_cut and truncated != "grade" else Outcome.OPEN,
        len(result.token_ids) + result.num_beyond,
        end_token_id=None if is_cut else result.end_token_id if result.num_chars is None else STOPPED,
        cutoff=cutoff,
        is_ignored=is_cut and truncated == "ignore",
    )


def _ended_at(steps: list[Step], num_chars: int) -> list[Step]:
    """The steps of an answer of `num_chars` characters; what its last token spells beyond them is no text of theirs."""
    beyond = sum(len(step.text) for step in steps) - num_chars
    return [*steps[:-1], steps[-1]._replace(text=steps[-1].text[:-beyond])] if beyond else steps


def _with_surprisals(steps: list[Step], logprobs: Float32Array) -> list[Step]:
    """The steps that an answer begins with, each with the mean of ``-log p`` over its tokens.

    Args:
        steps: in order, from the first token on.
        logprobs: `[T]` float32, of all of the answer's tokens.
    """
    measured, begin = [], 0
    for step in steps:
        end = begin + step.num_tokens
        measured.append(step._replace(surprisal=-float(logprobs[begin:end].mean())) if end > begin else step)
        begin = end
    return measured
