import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fixtures import LetterCodec

from pipeline_lib.search import split_steps


class TableCodec:
    """Token i is piece i, in bytes; joined, then decoded: like a byte-level tokenizer."""

    def __init__(self, *pieces):
        self.pieces = [piece if isinstance(piece, bytes) else piece.encode() for piece in pieces]

    def decode(self, token_ids):
        return b"".join(self.pieces[i] for i in token_ids.tolist()).decode(errors="replace")


class SpaceEatingCodec(TableCodec):
    """Drops the first space of a text: like a sentence-piece tokenizer."""

    def decode(self, token_ids):
        return super().decode(token_ids).removeprefix(" ")


def split(codec, delimiter="\n", ids=None):
    """Splits the given ids, by default every piece of the codec once."""
    ids = np.arange(len(codec.pieces), dtype=np.int32) if ids is None else ids
    steps = split_steps(ids, codec, delimiter)
    assert np.array_equal(np.concatenate([step.token_ids for step in steps]), ids)
    assert "".join(step.text for step in steps) == codec.decode(ids)
    return [(step.text, step.token_ids.tolist()) for step in steps]


def test_one_step_per_line_with_its_delimiter():
    assert split(TableCodec("a", "b\n", "c", "\n", "#1")) == [("ab\n", [0, 1]), ("c\n", [2, 3]), ("#1", [4])]


def test_a_delimiter_in_the_middle_of_a_token_ends_the_step_after_that_token():
    assert split(TableCodec("a", "\nb", "c\n", "d")) == [("a\nb", [0, 1]), ("c\n", [2]), ("d", [3])]


def test_two_delimiters_in_one_token_make_one_cut():
    assert split(TableCodec("a\nb\n", "c")) == [("a\nb\n", [0]), ("c", [1])]


def test_a_delimiter_over_two_tokens():
    assert split(TableCodec("a", "\n", "\n", "b", "\n", "c"), "\n\n") == [("a\n\n", [0, 1, 2]), ("b\nc", [3, 4, 5])]


def test_blank_steps_join_the_one_before_and_leading_ones_the_one_after():
    assert split(TableCodec("\n", "a\n", "\n", " \n", "b\n", "\n")) == [("\na\n\n \n", [0, 1, 2, 3]), ("b\n\n", [4, 5])]


def test_nothing_but_delimiters_is_one_step_and_no_token_is_no_step():
    assert split(TableCodec("\n", "\n")) == [("\n\n", [0, 1])]
    assert split_steps(np.zeros(0, dtype=np.int32), LetterCodec(), "\n") == []


def test_a_character_spread_over_tokens():
    first, second = "é".encode()[:1], "é".encode()[1:]
    codec = TableCodec("a", first, second, "\n", "b", first, second, "\n", "c")
    assert split(codec) == [("aé\n", [0, 1, 2, 3]), ("bé\n", [4, 5, 6, 7]), ("c", [8])]


def test_a_token_with_the_delimiter_and_half_of_the_next_character():
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert split(TableCodec("a", b"\n" + first, second, "b")) == [("a\n", [0, 1]), ("éb", [2, 3])]


def test_half_a_character_after_the_last_delimiter_stays_with_its_token():
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert split(TableCodec(first, second, b"\n" + first)) == [("é\n\ufffd", [0, 1, 2])]


def test_a_codec_whose_single_tokens_do_not_spell_the_text():
    codec = SpaceEatingCodec(" a", " b", "\n", " c", "\n", " #1")
    assert split(codec) == [("a b\n", [0, 1, 2]), (" c\n", [3, 4]), (" #1", [5])]


def test_a_special_token_at_the_end_stays_with_its_step():
    assert split(TableCodec("a", "\n", "b", "")) == [("a\n", [0, 1]), ("b", [2, 3])]


@given(
    st.lists(
        st.sampled_from(["a", " ", "\n", "\n\n", "b\nc", "é", b"\xc3", b"\xa9", b"\n\xc3", "", "\ufffd"]), min_size=1
    ),
    st.sampled_from(["\n", "\n\n"]),
    st.sampled_from([TableCodec, SpaceEatingCodec]),
)
def test_texts_and_tokens_always_add_up(pieces, delimiter, codec):
    steps = split(codec(*pieces), delimiter)
    assert all(text.strip() and ids for text, ids in steps) or len(steps) == 1


@pytest.mark.parametrize("delimiter", ["\n", "\n\n"])
def test_shared_pieces_change_nothing(delimiter):
    codec, pieces = LetterCodec(), {}
    for text in ("ab\n\nc\n#1", "b\n\n\na"):
        ids = codec.encode(text)
        shared = split_steps(ids, codec, delimiter, pieces=pieces)
        assert [step.text for step in shared] == [step.text for step in split_steps(ids, codec, delimiter)]
    assert pieces[ord("a")] == "a"
