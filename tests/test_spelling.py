"""Decoding and cutting from the bytes of tokens, and quick looks before rules, against doing it the slow, plain way."""

from __future__ import annotations

import re

import numpy as np
import pytest
from answer_fixtures import all_answers, byte_fallback_tokenizer, byte_level_tokenizer, codec_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders

from pipeline_lib.policy.codec import TokenizerCodec, spelling_of
from pipeline_lib.policy.model_folders import model_path
from pipeline_lib.search import markdown as rules
from pipeline_lib.search import split_steps
from pipeline_lib.search.alignment import INCOMPLETE, text_and_ends
from pipeline_lib.search.steps import Step, delimiter_ends
from pipeline_lib.types import Int32Array

TEXTS = ["".join(steps) for steps in all_answers().values()]


def gemma_like(texts: list[str]) -> Tokenizer:
    """Byte fallback that keeps a text's first space."""
    made = byte_fallback_tokenizer(texts)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


MAKERS = {"bytes": byte_level_tokenizer, "fallback": byte_fallback_tokenizer, "first space kept": gemma_like}


@pytest.fixture(scope="module", params=[*MAKERS, "tiny"])
def codec(request: pytest.FixtureRequest) -> TokenizerCodec:
    if request.param == "tiny":
        tokenizer = Tokenizer.from_file(str(model_path("tiny") / "tokenizer.json"))
    else:
        tokenizer = MAKERS[request.param](TEXTS[::4])
        tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
        tokenizer.add_tokens([AddedToken("<step 1>"), AddedToken("½ ▁")])
    return codec_of(tokenizer)


class PlainCodec:
    """Decodes by the tokenizer itself, and knows nothing about its tokens."""

    def __init__(self, codec: TokenizerCodec) -> None:
        self.tokenizer = codec.tokenizer

    def encode_prompt(self, question: str) -> Int32Array:
        raise AssertionError("only decoding is asked for")

    def encode(self, text: str) -> Int32Array:
        raise AssertionError("only decoding is asked for")

    def decode(self, token_ids: Int32Array) -> str:
        return str(self.tokenizer.backend_tokenizer.decode(token_ids.tolist(), skip_special_tokens=True))


def rollouts(codec: TokenizerCodec) -> list[Int32Array]:
    """Answers, cut anywhere, with tokens drawn in between, and tokens in no order; ids that no token has, too."""
    draw, made = np.random.default_rng(0), []
    num_ids = len(codec.tokenizer) + 3
    for text in TEXTS[::5]:
        ids = codec.encode(text)[: int(draw.integers(1, 400))]
        made += [ids, np.insert(ids, draw.integers(0, len(ids), 3), draw.integers(0, num_ids, 3)).astype(np.int32)]
        made.append(draw.integers(0, num_ids, int(draw.integers(1, 30))).astype(np.int32))
    return made


def test_a_text_is_what_the_tokenizer_decodes(codec: TokenizerCodec) -> None:
    plain = PlainCodec(codec)
    assert codec.spelling is not None
    drawn = rollouts(codec)
    assert [codec.decode(ids) for ids in drawn] == [plain.decode(ids) for ids in drawn]
    assert codec.decode(np.zeros(0, dtype=np.int32)) == plain.decode(np.zeros(0, dtype=np.int32)) == ""


def test_a_token_ends_where_the_text_of_all_up_to_it_does(codec: TokenizerCodec) -> None:
    plain, num_told = PlainCodec(codec), 0
    for ids in [ids for ids in rollouts(codec) if len(ids) < 120]:
        text, ends = text_and_ends(ids, codec)
        if ends is not None:
            prefixes = [plain.decode(ids[:number]).rstrip(INCOMPLETE) for number in range(1, len(ids) + 1)]
            # Byte fallback shows the whole characters of a run of bytes only where the run ends with one.
            assert ends.tolist() == np.maximum.accumulate([len(prefix) for prefix in prefixes]).tolist()
            assert text == prefixes[-1]
            num_told += 1
    assert num_told > 10


@pytest.mark.parametrize("delimiter", ["line", "blank_line", "sentence"])
def test_steps_are_those_that_are_found_without_knowing_the_tokens(codec: TokenizerCodec, delimiter: str) -> None:
    def split(ids: Int32Array, codec: TokenizerCodec | PlainCodec) -> list[tuple[str, list[int]]]:
        steps: list[Step] = split_steps(ids, codec, delimiter, markdown=True)
        return [(step.text, step.token_ids.tolist()) for step in steps]

    plain = PlainCodec(codec)
    for ids in rollouts(codec)[::3]:
        assert split(ids, codec) == split(ids, plain)


def test_characters_across_tokens_and_special_ones_between_them() -> None:
    tokenizer = byte_level_tokenizer(["a b"], size=256)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    codec = codec_of(tokenizer)
    smile, end = codec.encode("😊").tolist(), tokenizer.token_to_id("<|end|>")
    ids = np.array([*codec.encode("a"), *smile[:2], end, *smile[2:], end], dtype=np.int32)
    text, ends = text_and_ends(ids, codec)
    assert ends is not None
    assert (text, ends.tolist()) == ("a😊", [1, 1, 1, 1, 1, 2, 2])


def test_a_decoder_that_does_more_than_join_is_asked_itself() -> None:
    tokenizer = byte_level_tokenizer(["ab ab"], size=300)
    for decoder in (decoders.WordPiece(), decoders.Sequence([decoders.ByteLevel(), decoders.Strip("a", 1, 0)])):
        tokenizer.decoder = decoder
        assert spelling_of(tokenizer) is None
        assert codec_of(tokenizer).spelling is None
    ids = codec_of(tokenizer).encode("ab b")
    assert codec_of(tokenizer).decode(ids) == tokenizer.decode(ids.tolist()) == "b b"


# What `markdown` says in quick looks first, as one expression.
ANNOUNCES = re.compile(
    r"""(?: [:=,+(\[{：，] | \\\\(?:\[[^\]\n]{1,9}\])? | \\(?:times|cdot|div|implies|Rightarrow) ) (?:\*\*|__|\$)?$""",
    re.VERBOSE,
)
PARTS = [
    *("\n", "\n\n", "\n \n", "\r\n", " ", "\t", "a", "5", "é", "_", "*", "[", "]", "=", "：", "，", "+", "(", "{"),
    *("So:", "Step 1", "step 2:", "Case 3.", "Caſe 3", "part iv", "**", "__", "$", "$$", "**Step 2:**", "# H"),
    *(r"\[", r"\]", r"\\", r"\\[4pt]", r"\begin{a}", r"\end{a}", r"\times", r"\Rightarrow", r"\$", "#### 42"),
    *("```", "~~~", "````python", "`", "`x`", "|", "|---|---|", "| a | b |", ">", "> ", "- ", "* ", "+ ", "1. "),
    *("12)", "---", "***", "===", "<think>", "</a>"),
]
MARKDOWN = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)


def plain_formulas(text: str, fences: list[rules.Span]) -> list[rules.Span]:
    """As `markdown` finds them, paragraph by paragraph; a blank line of code ends none."""
    cuts = [found.start() for found in re.finditer(r"\n[ \t\r]*\n", text)]
    cuts = [cut for cut in cuts if not any(start <= cut < end for start, end in fences)]
    spans: list[rules.Span] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        begun: dict[str, int] = {}
        environments: list[int] = []
        for found in re.finditer(r"`[^`\n]*`|\\\\|\\\$|\\\[|\\\]|\\begin\{|\\end\{|\$\$", text):
            mark, at = found[0], found.start()
            if not start <= at < end or mark[0] == "`" or any(first <= at < last for first, last in fences):
                continue
            closed = begun.pop(mark, None)
            if mark == r"\begin{":
                environments.append(at)
            elif mark == r"\end{" and environments:
                spans.append((environments.pop(), found.end()))
            elif closed is not None:
                spans.append((closed, found.end()))
            elif mark in (r"\[", "$$"):
                begun[r"\]" if mark == r"\[" else mark] = at
    return spans


def plain_step_ends(text: str, candidates: list[int]) -> list[int]:
    """`markdown.step_ends`, every rule asked about every line."""
    fences = rules._fences(text)
    spans = [*fences, *rules._tables(text), *plain_formulas(text, fences)]
    ends, is_open = [], False
    for last, end in zip([0, *candidates], candidates, strict=False):
        piece = text[last:end].strip()
        line = piece.rpartition("\n")[2].strip()
        if any(start < end < stop for start, stop in spans):
            is_open = False
            continue
        if piece:
            is_open = ANNOUNCES.search(line) is not None or rules._LABEL.fullmatch(line) is not None
        if not is_open:
            ends.append(end)
    return ends


@settings(max_examples=400, deadline=None)
@given(MARKDOWN, st.sampled_from(["line", "sentence", "blank_line"]))
def test_quick_looks_change_nothing(text: str, delimiter: str) -> None:
    candidates = delimiter_ends(text, delimiter)
    assert list(rules.step_ends(text, candidates)) == plain_step_ends(text, candidates)
