"""Cuts a sampled rollout into reasoning steps without ever re-tokenising it.

One idea: the delimiter is looked for in the text, the cut is made between tokens. A step ends
with the token in which its delimiter ends, whatever else that token holds, so the tokens of all
steps in a row are exactly the tokens that were sampled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import regex

from pipeline_lib.config import ConfigError, SearchConfig
from pipeline_lib.policy.protocol import Codec
from pipeline_lib.search.alignment import Cut, TokenTexts, cuts_at, cuts_at_ends, text_and_ends
from pipeline_lib.search.markdown import step_ends
from pipeline_lib.types import Int32Array

STEP_RULES = 2  # rises when the rules below change where any text is cut
NO_SURPRISAL = -1.0  # of a step without tokens, or where nobody asked how probable they were
OWN_EXPRESSION_S = 1.0  # for one rollout; an expression that takes longer backtracks without end

# What ends a step under each name of `search.step_delimiter`; a match of a group does not.
_NAMED = {
    "line": re.compile(r"\n"),
    "blank_line": re.compile(r"\n(?:[ \t\r]*+\n)++"),
    "sentence": re.compile(
        r"""( ^[ \t>]*+\d++[.)] | \b(?:e\.g|i\.e|cf|vs|Dr|Mr|Mrs|Ms|Prof|Fig|Eq)\. )
          | [.!?]++["'”’)\]*_]*+ (?=[ \t]) | [。！？]++["'”’」』）]*+ | \n""",
        re.VERBOSE | re.MULTILINE,
    ),
}


class Step(NamedTuple):
    """One step as it was sampled.

    Args:
        text: delimiter included.
        token_ids: `[T]` int32.
        surprisal: mean of -log p over the tokens, in nats; `NO_SURPRISAL` where it is not known.
    """

    text: str
    token_ids: Int32Array
    surprisal: float = NO_SURPRISAL

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def split_steps(
    token_ids: Int32Array,
    codec: Codec,
    delimiter: str = "line",
    *,
    markdown: bool = False,
    texts: TokenTexts | None = None,
) -> list[Step]:
    r"""The steps of one rollout; both their texts and their tokens add up to the rollout's.

    A step of nothing but white space belongs to the step before it, or, at the very start, to the
    one after it. A rollout without any token has no step.

    Args:
        token_ids: `[T]` int32, the sampled tokens.
        codec: only `decode` is used.
        delimiter: what ends a step, see ``search.step_delimiter``.
        markdown: whether a step that leaves something open takes in the next one, see `markdown.step_ends`.
        texts: of single tokens, filled here; share one between calls to save decoding.

    Raises:
        ConfigError: a delimiter of the user's own takes more than `OWN_EXPRESSION_S`.

    Example: "1+1=2\n\n#### 2" by lines gives "1+1=2\n\n" and "#### 2".
    """
    if len(token_ids) == 0:
        return []
    text, ends = text_and_ends(token_ids, codec)
    stops = delimiter_ends(text, delimiter)
    if markdown:
        stops = list(step_ends(text, stops))
    if ends is None:
        cuts = cuts_at(token_ids, text, stops, codec, TokenTexts() if texts is None else texts)
    else:
        cuts = cuts_at_ends(ends, stops)
    return _steps_between(text, token_ids, [*cuts, (len(token_ids), len(text))])


def delimiter_ends(text: str, delimiter: str) -> list[int]:
    r"""Where each delimiter ends, in characters, ascending.

    Args:
        text: one rollout's.
        delimiter: see ``search.step_delimiter``.

    Raises:
        ConfigError: an expression of the user's own takes more than `OWN_EXPRESSION_S`.

    Example: "So 1. And\n2" has one end by lines, 10, and two by sentences, 5 and 10.
    """
    named = _NAMED.get(delimiter)
    if named is not None:
        matches = named.finditer(text)
        return [found.end() for found in matches if found.lastindex is None]
    try:
        return [found.end() for found in regex.finditer(delimiter, text, timeout=OWN_EXPRESSION_S)]
    except TimeoutError:
        raise ConfigError(
            f"search.step_delimiter={delimiter!r}: takes more than {OWN_EXPRESSION_S:g} s on a rollout of "
            f"{len(text)} characters; leave out repetitions within repetitions"
        ) from None


def step_rules(config: SearchConfig, *, model: str) -> dict[str, int]:
    """What a store key must hold besides the settings, so that trees cut by other rules are not taken for these.

    Nothing where they are what version 0.1.0 made: steps that are lines, from the embedded model. With a tokenizer that
    writes line ends as bytes it let such a step end some tokens late where the next line began with a rare character.

    Args:
        config: `step_delimiter` and `markdown_steps` are used.
        model: ``policy.model``.
    """
    is_as_before = model == "tiny" and config.step_delimiter == "line" and not config.markdown_steps
    return {} if is_as_before else {"step_rules": STEP_RULES}


def _steps_between(text: str, token_ids: Int32Array, cuts: Sequence[Cut]) -> list[Step]:
    """Steps from cut (token, character) to cut, every blank one joined to its neighbour.

    Args:
        text: of all tokens.
        token_ids: `[T]` int32.
        cuts: ascending; the last one is the end of both.
    """
    pieces: list[str] = []
    ends = [0]
    begin = 0
    for token, char in cuts:
        piece = text[begin:char]
        if piece and not piece.isspace():
            pieces.append(piece if pieces else text[:char])
            ends.append(token)
        elif pieces:
            pieces[-1] += piece
            ends[-1] = token
        begin = char
    if not pieces:
        return [Step(text, token_ids)]
    return [Step(piece, token_ids[first:end]) for piece, (first, end) in zip(pieces, pairwise(ends), strict=True)]
