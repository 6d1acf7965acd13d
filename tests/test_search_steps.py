import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fixtures import LetterCodec

from pipeline_lib.config import ConfigError, SearchConfig
from pipeline_lib.search import TokenTexts, split_steps, step_rules
from pipeline_lib.search.steps import STEP_RULES


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
    codec, texts = LetterCodec(), TokenTexts()
    for text in ("ab\n\nc\n#1", "b\n\n\na"):
        ids = codec.encode(text)
        shared = split_steps(ids, codec, delimiter, texts=texts)
        assert [step.text for step in shared] == [step.text for step in split_steps(ids, codec, delimiter)]
    assert texts.alone[ord("a")] == "a"


def test_a_run_of_bytes_longer_than_is_remembered():
    smile = "😊".encode()
    codec = TableCodec("a", *(smile[i : i + 1] for i in range(4)), "\n", " b")
    ids, texts = np.array([0, *[1, 2, 3, 4] * 5, 5, 6], dtype=np.int32), TokenTexts()
    for _ in range(2):
        steps = split_steps(ids, codec, texts=texts)
        assert [step.text for step in steps] == ["a" + "😊" * 5 + "\n", " b"]
        assert [len(step.token_ids) for step in steps] == [22, 1]
    assert texts.runs == {}


@pytest.mark.parametrize(
    ("delimiter", "text", "expected"),
    [
        ("blank_line", "a\nb\n\nc\n \n\nd", ["a\nb\n\n", "c\n \n\n", "d"]),
        ("blank_line", "a\r\n\r\nb\r\n", ["a\r\n\r\n", "b\r\n"]),
        ("sentence", "It is 3.5 m. So 2 of them?! Yes.\nDone", ["It is 3.5 m.", " So 2 of them?!", " Yes.\n", "Done"]),
        ("sentence", "1. Add, e.g. 2. Then 'stop.' 2) End", ["1. Add, e.g. 2.", " Then 'stop.'", " 2) End"]),
        ("sentence", "首先有3个。然后加2。\n好", ["首先有3个。", "然后加2。\n", "好"]),
        (r";\s", "a; b;c;\nd", ["a; ", "b;c;\n", "d"]),
        (r"(?<=,)", "a,b,,c", ["a,", "b,", ",", "c"]),
        (r"(?:END)", "a END b", ["a END", " b"]),
    ],
)
def test_what_ends_a_step_is_a_dial(delimiter, text, expected):
    codec = LetterCodec()
    assert [step.text for step in split_steps(codec.encode(text), codec, delimiter)] == expected


def test_what_is_left_open_stays_open_at_other_delimiters():
    codec = LetterCodec()
    text = "### Step 1\n\nAdd.\n\n$$\nx. y\n$$\n\nSo:\n\n2. End."
    found = [step.text for step in split_steps(codec.encode(text), codec, "blank_line", markdown=True)]
    assert found == ["### Step 1\n\nAdd.\n\n", "$$\nx. y\n$$\n\n", "So:\n\n2. End."]


def test_the_rules_are_in_the_key_but_where_they_are_those_of_0_1_0():
    assert step_rules(SearchConfig(), model="tiny") == {}
    named = {"step_rules": STEP_RULES}
    assert step_rules(SearchConfig(), model="owner/model") == named
    assert step_rules(SearchConfig(markdown_steps=True), model="tiny") == named
    assert step_rules(SearchConfig(step_delimiter="sentence"), model="tiny") == named


def test_an_expression_that_backtracks_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr("pipeline_lib.search.steps.OWN_EXPRESSION_S", 0.05)
    codec = LetterCodec()
    with pytest.raises(ConfigError, match=r"search.step_delimiter='\(a\|a\)\+b': takes more than 0.05 s on a rollout"):
        split_steps(codec.encode("a" * 40 + "c"), codec, "(a|a)+b")
