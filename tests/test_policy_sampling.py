from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policy_fixtures import write_tokenizer
from transformers import AutoTokenizer

from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.prompting.conversation import Conversation
from pipeline_lib.policy.transformers_engine import sampling
from pipeline_lib.policy.transformers_engine.sampling import draw_tokens, draw_uniforms, token_logprobs

LOGITS = torch.log(torch.tensor([0.2, 0.5, 0.3]))


def draw(
    uniforms: list[float], *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> list[int]:
    count = len(uniforms)
    parameters = [torch.full((count,), value) for value in (temperature, top_p, top_k, min_p)]
    return draw_tokens(LOGITS.expand(count, 3), torch.tensor(uniforms, dtype=torch.float64), *parameters).tolist()


def test_inverse_cumulative_distribution_by_hand() -> None:
    assert draw([0.0, 0.1, 0.201, 0.69, 0.701, 0.95, 1 - 2**-53]) == [0, 0, 1, 1, 2, 2, 2]


def test_nucleus_by_hand() -> None:
    assert draw([0.0, 0.62, 0.63, 0.99], top_p=0.6) == [1, 1, 2, 2]
    assert draw([0.0, 0.99], top_p=0.1) == [1, 1]


def test_top_k_and_min_p_by_hand() -> None:
    for likely in ({"top_k": 2}, {"min_p": 0.5}, {"min_p": 0.6}):  # 0.3 is 0.6 times 0.5
        assert draw([0.0, 0.62, 0.63, 0.99], **likely) == [1, 1, 2, 2]
    assert draw([0.0, 0.99], top_k=1) == draw([0.0, 0.99], min_p=1.0) == [1, 1]
    assert draw([0.1, 0.3, 0.95], top_k=3) == [1, 1, 0]  # all take part, the most probable first
    # Of what the other two leave, the nucleus takes a share: 0.625 is at least 0.6, 0.5 of the whole would not be.
    assert draw([0.0, 0.99], top_k=2, top_p=0.6) == [1, 1]
    assert draw([0.0, 0.99], min_p=0.5, top_p=0.6) == [1, 1]
    # They see what the temperature has made: (0.105, 0.658, 0.237), where 0.237 is 0.36 times 0.658.
    assert draw([0.0, 0.99], min_p=0.4, temperature=0.5) == [1, 1]
    assert draw([0.0, 0.99], min_p=0.3, temperature=0.5) == [1, 2]


def test_temperature_sharpens_and_zero_is_greedy() -> None:
    # Squared and normalised, (0.2, 0.5, 0.3) is (0.105, 0.658, 0.237).
    assert draw([0.1, 0.11, 0.76, 0.77], temperature=0.5) == [0, 1, 1, 2]
    assert draw([0.0, 0.99], temperature=0.0) == [1, 1]


def test_logits_that_are_not_numbers_are_marked() -> None:
    logits = torch.tensor([[0.0, torch.nan], [0.0, 1.0], [torch.inf, 0.0]])
    ones = torch.ones(3)
    assert draw_tokens(logits, torch.full((3,), 0.9, dtype=torch.float64), ones, ones).tolist() == [-1, 1, -1]


@pytest.mark.parametrize("levels", [3, 50, 100_000])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 8.0])
def test_sorting_the_most_probable_tokens_alone_draws_as_sorting_all(
    monkeypatch: pytest.MonkeyPatch, levels: int, sharpness: float
) -> None:
    """Rows of few levels are full of ties, flat ones need more tokens than are sorted at first, sharp ones fewer."""
    generator = torch.Generator().manual_seed(levels)
    count, vocabulary = 48, 700
    logits = sharpness * torch.randint(levels, (count, vocabulary), generator=generator).float() / levels
    uniforms = torch.rand(count, dtype=torch.float64, generator=generator)
    turns = torch.arange(count)
    parameters = (
        torch.tensor([0.0, 0.6, 1.0])[turns % 3],
        torch.tensor([1.0, 0.3, 0.9, 0.999])[turns % 4],
        torch.tensor([0, 0, 5, 64, 65, 600])[turns % 6],
        torch.tensor([0.0, 0.0, 0.2, 0.0, 0.01])[turns % 5],
    )
    drawn = []
    for at_first in (64, vocabulary):
        monkeypatch.setattr(sampling, "MOST_PROBABLE", at_first)
        drawn.append(draw_tokens(logits, uniforms, *parameters).tolist())
    assert drawn[0] == drawn[1]


def test_log_probabilities_by_hand_and_alike_whatever_stands_beside() -> None:
    assert token_logprobs(LOGITS.expand(3, 3), torch.arange(3)).exp().tolist() == pytest.approx([0.2, 0.5, 0.3])
    logits = torch.randn(37, 500, generator=torch.Generator().manual_seed(0)) * 3
    tokens = torch.arange(37) * 13
    together = token_logprobs(logits, tokens)
    assert all(
        torch.equal(token_logprobs(logits[i : i + 1], tokens[i : i + 1]), together[i : i + 1]) for i in range(37)
    )


def test_frequencies_follow_the_distribution() -> None:
    drawn = draw(draw_uniforms(1, 20_000).tolist())
    assert np.bincount(drawn) / 20_000 == pytest.approx([0.2, 0.5, 0.3], abs=0.012)


@given(st.integers(0, 2**63 - 1), st.integers(1, 50), st.integers(0, 50))
def test_uniforms_are_a_function_of_seed_and_place(seed: int, count: int, more: int) -> None:
    uniforms = draw_uniforms(seed, count + more)
    assert np.array_equal(uniforms[:count], draw_uniforms(seed, count))
    assert ((uniforms >= 0) & (uniforms < 1)).all()


@given(st.data())
def test_a_row_is_drawn_alike_whatever_stands_beside_it(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn(count, 40, generator=generator) * 3
    uniforms = torch.rand(count, generator=generator, dtype=torch.float64)
    temperatures = torch.tensor([data.draw(st.sampled_from([0.0, 0.7, 1.0])) for _ in range(count)])
    top_ps = torch.tensor([data.draw(st.sampled_from([0.3, 0.9, 1.0])) for _ in range(count)])
    top_ks = torch.tensor([data.draw(st.sampled_from([0, 1, 5])) for _ in range(count)])
    min_ps = torch.tensor([data.draw(st.sampled_from([0.0, 0.1])) for _ in range(count)])
    parameters = (uniforms, temperatures, top_ps, top_ks, min_ps)
    together = draw_tokens(logits, *parameters)
    for i in range(count):
        row = slice(i, i + 1)
        assert draw_tokens(logits[row], *(each[row] for each in parameters))[0] == together[i]


def test_codec_wraps_the_question_in_the_chat_template(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    codec = TokenizerCodec(tokenizer, Conversation("be brief"))
    ids = codec.encode_prompt("ab")
    assert ids.dtype == np.int32
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == ["<user>", *"ab\nbe brief", "<assistant>"]
    assert codec.decode(ids) == "ab\nbe brief"
    assert codec.decode(codec.encode("x 1.\n")) == "x 1.\n"
