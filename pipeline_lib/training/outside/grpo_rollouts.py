"""Rollouts for TRL, asked and ended as a search's are, and what each is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from pipeline_lib.config import Truncated
from pipeline_lib.grading.grader import Grader
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.prompting.stop_rule import AnswerEnd, StopWatch, watch_for
from pipeline_lib.policy.protocol import SampleRequest, SamplingParams


class Answer(NamedTuple):
    """One sampled answer.

    Args:
        token_ids: what is trained on, with the token that ended it; at least one.
        text: what is graded.
        is_cut_off: a limit ended it.
        num_sampled: tokens that were sampled for it, those of a stop string included.
    """

    token_ids: list[int]
    text: str
    is_cut_off: bool
    num_sampled: int


class StopRules(StoppingCriteria):
    """Ends the rows of a batch by the codec's stop rule.

    Args:
        watches: one per row.
        num_prompt_tokens: of every row, padding included.
    """

    def __init__(self, watches: Sequence[StopWatch], num_prompt_tokens: int) -> None:
        self._watches, self._num_prompt_tokens = watches, num_prompt_tokens
        self.ends: list[tuple[AnswerEnd, int] | None] = [None] * len(watches)
        """Of each row that was ended: where, and how many tokens had been sampled."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """`[B]` bool: which rows are done."""
        for row, sampled in enumerate(input_ids[:, self._num_prompt_tokens :].tolist()):
            if self.ends[row] is None and (end := self._watches[row].look(sampled)) is not None:
                self.ends[row] = end, len(sampled)
        return torch.tensor([end is not None for end in self.ends], device=input_ids.device)


def sample_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    codec: TokenizerCodec,
    generation: Any,
    end_ids: Sequence[int],
    pad_id: int,
) -> list[Answer]:
    """One answer to each prompt, by transformers' own `generate`.

    Shapes: B prompts.

    Args:
        model: what samples.
        prompts: B lists of token ids.
        codec: decodes, and says what ends an answer besides a token.
        generation: transformers' generation config: temperature, limits.
        end_ids: tokens that end an answer.
        pad_id: fills rows up.
    """
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    rules = _rules(codec, prompts, width)
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=generation,
            stopping_criteria=StoppingCriteriaList([] if rules is None else [rules]),
        )
    ends = [None] * len(prompts) if rules is None else rules.ends
    rows = output[:, width:].tolist()
    return [_answer(sampled, end, codec, set(end_ids)) for sampled, end in zip(rows, ends, strict=True)]


def _rules(codec: TokenizerCodec, prompts: Sequence[Sequence[int]], width: int) -> StopRules | None:
    """None where nothing but a token ends an answer."""
    params = SamplingParams(1)
    requests = [SampleRequest(str(row), np.asarray(prompt, np.int32), params, 0) for row, prompt in enumerate(prompts)]
    watches = [watch for request in requests if (watch := watch_for(codec, request)) is not None]
    return StopRules(watches, width) if watches else None


def _answer(sampled: list[int], end: tuple[AnswerEnd, int] | None, codec: TokenizerCodec, end_ids: set[int]) -> Answer:
    """Of a row of `generate`, which is padded behind its end."""
    stop = next((place for place, token in enumerate(sampled) if token in end_ids), None)
    if stop is not None and (end is None or stop < end[1]):
        return Answer(sampled[: stop + 1], _decoded(codec, sampled[:stop]), False, stop + 1)
    if end is None:
        return Answer(sampled, _decoded(codec, sampled), True, len(sampled))
    (num_tokens, num_chars), num_sampled = end
    text = _decoded(codec, sampled[:num_tokens])[:num_chars]
    return Answer(sampled[: max(1, num_tokens)], text, False, num_sampled)


def _decoded(codec: TokenizerCodec, ids: list[int]) -> str:
    return codec.decode(np.asarray(ids, dtype=np.int32)) if ids else ""


def rewards_of(
    answers: Sequence[Answer], golds: Sequence[str], grader: Grader, truncated: Truncated
) -> list[float | None]:
    """What a search would back up for each answer: 1 where it is right, else 0; None where it does not count.

    Args:
        answers: as sampled.
        golds: the gold answer to each.
        grader: nothing else may be in flight on it.
        truncated: what an answer that a limit cut off counts as.
    """
    rewards: list[float | None] = [0.0] * len(answers)
    for number, (answer, gold) in enumerate(zip(answers, golds, strict=True)):
        if not answer.is_cut_off or truncated == "grade":
            grader.submit(str(number), answer.text, gold)
        elif truncated == "ignore":
            rewards[number] = None
    while grader.num_in_flight:
        for key, verdict in grader.poll_verdicts(block=True):
            rewards[int(key)] = verdict.reward
    return rewards
