"""What all engines share: requests in flight, what ends an answer, one line of another program's words."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from pipeline_lib.config.one_line import first_line, one_line
from pipeline_lib.policy import FinishReason, SampleRequest, SamplingParams
from pipeline_lib.policy.end_tokens import end_token_ids, read_answer, trained_end_id
from pipeline_lib.policy.in_flight import InFlight, ModelLimits
from pipeline_lib.policy.prompting.stop_rule import AnswerEnd

LIMITS = ModelLimits(context=4, vocab_size=10)


def request(name: str, ids: list[int], *, max_new_tokens: int = 5) -> SampleRequest:
    return SampleRequest(name, np.array(ids, dtype=np.int32), SamplingParams(max_new_tokens), 0)


@pytest.mark.parametrize(
    ("ids", "max_new_tokens", "reason"),
    [
        ([1, 2, 3], 5, None),
        ([0, 9], 1, None),
        ([], 5, "error"),
        ([1] * 5, 5, "length"),
        ([1, 10], 5, "error"),
        ([-1, 1], 5, "error"),
        ([1] * 4, 5, "length"),
        ([1, 2], 0, "length"),
    ],
)
def test_a_request_that_cannot_run_is_finished_at_once(ids: list[int], max_new_tokens: int, reason: str | None) -> None:
    held = InFlight()
    held.submit([request("a", ids, max_new_tokens=max_new_tokens)], LIMITS)
    assert (len(held), len(held.waiting), held.has_results) == (1, reason is None, reason is not None)
    results = held.hand_over()
    assert [(r.request_id, r.finish_reason, len(r.token_ids)) for r in results] == (
        [("a", reason, 0)] if reason else []
    )


def test_without_limits_every_request_waits() -> None:
    held = InFlight()
    held.submit([request("a", [])])
    assert [each.request_id for each in held.waiting] == ["a"]


def test_an_id_is_taken_until_its_result_is_handed_over() -> None:
    held = InFlight()
    held.submit([request("a", [1])], LIMITS)
    held.waiting.popleft()
    for _ in range(2):
        with pytest.raises(ValueError, match="'a' is in flight already"):
            held.submit([request("a", [1])], LIMITS)
        held.finish("a", [7, 8], FinishReason.STOP)
    with pytest.raises(RuntimeError, match="1 requests are in flight"):
        held.refuse_any()
    first, second = held.hand_over()
    assert first.token_ids.tolist() == second.token_ids.tolist() == [7, 8]
    assert first.token_ids.dtype == np.int32
    held.refuse_any()
    held.submit([request("a", [1])], LIMITS)
    held.clear()
    assert (len(held), len(held.waiting), held.hand_over()) == (0, 0, [])


def test_log_probabilities_are_those_of_the_answers_own_tokens() -> None:
    held, drawn = InFlight(), np.array([-1, -2, -3, -4], dtype=np.float32)
    held.finish("a", [7, 8, 9], FinishReason.STOP, logprobs=drawn)
    held.stop("b", [7, 8, 9], AnswerEnd(2, 5), logprobs=[-1.0, -2.0, -3.0])
    held.finish("c", [7], FinishReason.STOP)
    drawn[:] = 0  # the engine's own, which goes on
    first, stopped, unasked = held.hand_over()
    assert (first.logprobs.tolist(), stopped.logprobs.tolist()) == ([-1, -2, -3], [-1, -2])
    assert unasked.logprobs is None


def test_results_are_gathered_only_while_others_wait_for_a_row() -> None:
    held = InFlight()
    assert not held.needs_pass(8)
    held.submit([request(name, [1]) for name in "abcd"], LIMITS)
    assert held.needs_pass(8)
    held.waiting.popleft()
    held.finish("a", [], FinishReason.STOP)
    assert held.needs_pass(8)  # a quarter of eight rows is two
    assert not held.needs_pass(4)
    held.waiting.clear()
    assert not held.needs_pass(8)


@pytest.mark.parametrize(
    ("declared", "own", "ids"), [(None, 2, [2]), (7, 2, [2, 7]), ([7, 2], 2, [2, 7]), ((3, 1), None, [1, 3])]
)
def test_an_answer_ends_at_the_declared_ids_and_the_tokenizers_own(declared: object, own: object, ids: object) -> None:
    assert end_token_ids(declared, SimpleNamespace(eos_token_id=own)) == ids


def test_where_nobody_knows_training_scores_the_tokenizers_own_end_or_says_that_there_is_none() -> None:
    assert trained_end_id([1, 7], SimpleNamespace(eos_token_id=2)) == 2
    assert trained_end_id([7, 3], SimpleNamespace(eos_token_id=None)) == 3
    with pytest.raises(ValueError, match="the tokenizer in here has no end-of-sequence token"):
        trained_end_id(None, SimpleNamespace(eos_token_id=None, name_or_path="here"))


@pytest.mark.parametrize(
    ("token_ids", "word", "answer"),
    [
        ([5, 6, 2], "stop", ([5, 6], "stop", 2)),
        ([5, 6], "stop", ([5, 6], "stop", None)),
        ([], "stop", ([], "stop", None)),
        ([5, 2], "length", ([5, 2], "length", None)),
        ([5], "abort", ([5], "error", None)),
        ([5], None, ([5], "error", None)),
    ],
)
def test_the_token_that_ended_an_answer_is_not_part_of_it(
    token_ids: list[int], word: str | None, answer: object
) -> None:
    assert read_answer(token_ids, word, [1, 2]) == answer


def test_an_error_becomes_one_line() -> None:
    class Model(BaseModel):
        size: int

    with pytest.raises(ValidationError) as refused:
        Model.model_validate({"size": "large"})
    assert first_line(refused.value).startswith("Input should be a valid integer")
    assert first_line(OSError("\nno such model\nsee the documentation")) == "no such model"
    assert first_line(OSError()) == "OSError"
    assert one_line("rank 16 is\n  greater than 8", max_chars=12) == "rank 16 is g"
