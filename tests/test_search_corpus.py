"""Where steps end in 300 answers as instruction-tuned models write them, and what it costs to find out."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from answer_fixtures import all_answers, byte_fallback_tokenizer, byte_level_tokenizer, codec_of
from search_fixtures import LetterCodec

from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.search import TokenTexts, split_steps
from pipeline_lib.search.alignment import INCOMPLETE, cuts_at
from pipeline_lib.search.steps import delimiter_ends
from pipeline_lib.types import Int32Array

ANSWERS = all_answers()
TEXTS = {name: "".join(steps) for name, steps in ANSWERS.items()}


class CountingCodec(TokenizerCodec):
    """Counts the tokens that it decodes; one that does not know their bytes, see test_spelling.py for those that do."""

    num_decoded = 0

    def decode(self, token_ids: Int32Array) -> str:
        self.num_decoded += len(token_ids)
        return super().decode(token_ids)


@pytest.fixture(scope="module", params=[byte_level_tokenizer, byte_fallback_tokenizer], ids=["bytes", "fallback"])
def codec(request: pytest.FixtureRequest) -> CountingCodec:
    made = CountingCodec(codec_of(request.param(list(TEXTS.values()))).tokenizer)
    made.spelling = None
    return made


def test_the_corpus_is_large_and_of_many_kinds() -> None:
    kinds = Counter(name.rpartition("-")[0] for name in ANSWERS if name.rpartition("-")[2].isdigit())
    assert len(ANSWERS) == len(set(TEXTS.values())) == 300
    assert len(kinds) == 10
    assert min(kinds.values()) > 20
    assert sum(len(steps) for steps in ANSWERS.values()) > 2500


def test_every_answer_is_cut_into_its_steps() -> None:
    codec = LetterCodec()
    found = {
        name: [step.text for step in split_steps(codec.encode(text), codec, markdown=True)]
        for name, text in TEXTS.items()
    }
    assert {name: steps for name, steps in found.items() if steps != ANSWERS[name]} == {}


def test_tokens_are_cut_where_the_text_is(codec: CountingCodec) -> None:
    texts, wrong = TokenTexts(), {}
    for name, text in TEXTS.items():
        ids = codec.encode(text)
        steps = split_steps(ids, codec, markdown=True, texts=texts)
        assert np.array_equal(np.concatenate([step.token_ids for step in steps]), ids)
        assert "".join(step.text for step in steps) == codec.decode(ids)
        if [step.text.strip() for step in steps] != [step.strip() for step in ANSWERS[name]]:
            wrong[name] = [step.text for step in steps]
    assert wrong == {}


def by_prefixes(ids: Int32Array, text: str, stop: int, codec: TokenizerCodec) -> tuple[int, int]:
    """The first prefix whose text, but for an unfinished character, reaches `stop`."""
    for num_tokens in range(len(ids)):
        reached = len(codec.decode(ids[:num_tokens]).rstrip(INCOMPLETE))
        if reached >= stop:
            return num_tokens, max(reached, stop)
    return len(ids), len(text)


def test_every_cut_is_the_one_that_prefixes_give(codec: CountingCodec) -> None:
    texts = TokenTexts()
    for ids in [ids for ids in map(codec.encode, TEXTS.values()) if len(ids) < 160][::9]:
        text = codec.decode(ids)
        stops = delimiter_ends(text, "[\\n ,5\ufffd😊。]")
        expected = [by_prefixes(ids, text, stop, codec) for stop in stops]
        assert cuts_at(ids, text, stops, codec, texts) == expected


def test_tokens_in_no_order_add_up(codec: CountingCodec) -> None:
    texts, draw = TokenTexts(), np.random.default_rng(0)
    for _ in range(200):
        ids = draw.integers(0, len(codec.tokenizer), 60).astype(np.int32)
        steps = split_steps(ids, codec, markdown=True, texts=texts)
        assert np.array_equal(np.concatenate([step.token_ids for step in steps]), ids)
        assert "".join(step.text for step in steps) == codec.decode(ids)


def test_the_texts_of_tokens_are_decoded_once(codec: CountingCodec) -> None:
    texts = TokenTexts()
    encoded = [codec.encode(text) for text in TEXTS.values()]
    for ids in encoded:
        split_steps(ids, codec, markdown=True, texts=texts)
    codec.num_decoded = 0
    for ids in encoded:
        split_steps(ids, codec, markdown=True, texts=texts)
    assert codec.num_decoded <= 1.1 * sum(map(len, encoded))  # the whole text, and runs of bytes too long to keep


LONG = {
    "lines": "So x = 2.\n",
    "labels": "**Step 1:**\n",
    "blank lines": "\n",
    "blank lines of windows": " \r\n",
    "an unclosed fence": "x = 1 \n\n",
    "fences": "```python\nx\n",
    "an unclosed formula": r"\[ x = 1 \\[4pt]" + "\n",
    "formulas": "$$\nx\n$$\n",
    "environments": r"\begin{a}" + "\n",
    "table": "| 1 | 2 |\n",
    "rules of tables": "|---|---|\n",
    "spaces": "            ",
    "quotations": "> > > > > >\n",
    "ticks": "` `` \n",
    "stars": "** __ \n",
}


@pytest.mark.parametrize(
    ("kind", "delimiter"),
    [*((kind, "line") for kind in LONG), ("lines", "sentence"), ("spaces", "sentence"), ("blank lines", "blank_line")],
)
def test_time_grows_with_the_length_alone(kind: str, delimiter: str) -> None:
    """Over 16 times the length a linear scan takes 16 times as long, a quadratic one 256 times."""
    codec = LetterCodec()

    def seconds(num_chars: int) -> float:
        start = {"an unclosed fence": "```python\n", "table": "| a | b |\n|---|---|\n"}.get(kind, "")
        ids = codec.encode((start + LONG[kind] * num_chars)[:num_chars])
        took = []
        for _ in range(3):
            started = time.process_time()
            split_steps(ids, codec, delimiter, markdown=True)
            took.append(time.process_time() - started)
        return min(took)

    assert seconds(64_000) < 80 * max(seconds(4_000), 1e-3)
