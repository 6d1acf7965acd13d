"""Which sampled token holds a character of the decoded text.

One idea: a text is taken apart into the texts of its tokens, which are remembered, and joined again as a proof. What a
single token spells depends on the tokenizer:

1. its own text, wherever it stands: byte-level tokenizers, as long as no character lies across tokens;
2. its text behind another token: tokenizers that drop the space before a text's first word;
3. nothing by itself: some bytes of a character. Such tokens in a row are decoded together.

A codec that none of this fits is asked for the texts of prefixes, some eight of them for every cut.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np

from pipeline_lib.policy.protocol import Codec
from pipeline_lib.types import Int32Array

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # how codecs show the first bytes of an unfinished character
FEW = 16  # tokens, the first ones
REMEMBERED_RUN = 8  # tokens; a longer run of bytes will hardly come again

Cut = tuple[int, int]


@dataclass(slots=True)
class TokenTexts:
    """What the tokens of one codec spell, remembered from rollout to rollout.

    Args:
        alone: the text of each token by itself.
        behind: its text behind another one; "" where it is part of a character.
        parts: the tokens that are parts of characters.
        runs: the text of some of those in a row.
    """

    alone: dict[int, str] = field(default_factory=dict)
    behind: dict[int, str] = field(default_factory=dict)
    parts: set[int] = field(default_factory=set)
    runs: dict[tuple[int, ...], str] = field(default_factory=dict)


def cuts_at(token_ids: Int32Array, text: str, stops: Sequence[int], codec: Codec, texts: TokenTexts) -> list[Cut]:
    """For each stop the fewest tokens whose text reaches it, and the character where that text ends.

    Args:
        token_ids: `[T]` int32, the sampled tokens, at least one.
        text: theirs, as `codec` decodes them.
        stops: characters, ascending, from 0 to the text's length.
        codec: only `decode` is used.
        texts: of this codec; filled here.
    """
    ids = token_ids.tolist()
    pieces: Sequence[str] = _pieces_alone(ids[:FEW], codec, texts)
    if text.startswith("".join(pieces)):  # else it is of no use to look at the others
        pieces = _pieces_alone(ids, codec, texts)
    runs: dict[int, int] = {}
    if "".join(pieces) != text:
        pieces, runs = _pieces_behind(ids, codec, texts)
        if "".join(pieces) != text:
            return [_cut_by_prefixes(token_ids, text, codec, stop, (0, len(ids)), 0) for stop in stops]
    ends = np.fromiter(map(len, pieces), np.int64, len(pieces)).cumsum()
    tokens = ends.searchsorted(stops)
    cuts = list(zip((tokens + 1).tolist(), ends[tokens].tolist(), strict=True))
    for place, token in enumerate(tokens.tolist() if runs else ()):
        if token in runs:
            begin = int(ends[token - 1]) if token else 0
            cuts[place] = _cut_by_prefixes(token_ids, text, codec, stops[place], (token, runs[token]), begin)
    return cuts


def _pieces_alone(ids: list[int], codec: Codec, texts: TokenTexts) -> tuple[str, ...]:
    """The text of each token by itself."""
    try:
        return _looked_up(texts.alone, ids)
    except KeyError:
        texts.alone |= {token_id: _decode(codec, token_id) for token_id in ids if token_id not in texts.alone}
        return _looked_up(texts.alone, ids)


def _pieces_behind(ids: list[int], codec: Codec, texts: TokenTexts) -> tuple[list[str], dict[int, int]]:
    """The text of each token behind the ones before it, that of a run at its first token; and where each run ends.

    Runs are tokens in a row whose own texts are incomplete, given as first token to the one after the last.
    """
    try:
        pieces = list(_looked_up(texts.behind, ids))
    except KeyError:
        texts.behind |= {id_: _text_behind(codec, id_, texts) for id_ in ids if id_ not in texts.behind}
        pieces = list(_looked_up(texts.behind, ids))
    if ids[0] not in texts.parts:
        pieces[0] = texts.alone[ids[0]]
    runs: dict[int, int] = {}
    if texts.parts.isdisjoint(ids):
        return pieces, runs
    first = end = -1
    for token in (token for token, token_id in enumerate(ids) if token_id in texts.parts):
        first, end = (first if token == end else token), token + 1
        runs[first] = end
    for first, end in runs.items():
        pieces[first] = _text_of_run(tuple(ids[first:end]), codec, texts)
    return pieces, runs


def _looked_up(texts: dict[int, str], ids: list[int]) -> tuple[str, ...]:
    """The texts of all `ids`, several times as fast as one by one."""
    return itemgetter(*ids)(texts) if len(ids) > 1 else (texts[ids[0]],)


def _text_behind(codec: Codec, token_id: int, texts: TokenTexts) -> str:
    """What a token adds behind itself, as behind any other; "" where it is part of a character, which is noted."""
    (alone,) = _pieces_alone([token_id], codec, texts)
    if INCOMPLETE in alone:
        texts.parts.add(token_id)
        return ""
    twice = _decode(codec, token_id, token_id)
    return twice[len(alone) :] if twice.startswith(alone) else alone


def _text_of_run(ids: tuple[int, ...], codec: Codec, texts: TokenTexts) -> str:
    text = texts.runs.get(ids)
    if text is None:
        text = _decode(codec, *ids)
        if len(ids) <= REMEMBERED_RUN:
            texts.runs[ids] = text
    return text


def _decode(codec: Codec, *ids: int) -> str:
    return codec.decode(np.array(ids, dtype=np.int32))


def _cut_by_prefixes(
    token_ids: Int32Array, text: str, codec: Codec, stop: int, within: tuple[int, int], begin: int
) -> Cut:
    """One cut, by a binary search over prefixes of some of the tokens.

    Right for any codec whose prefixes decode to prefixes, up to one unfinished character.

    Args:
        token_ids: all of the rollout's.
        text: theirs.
        codec: decodes prefixes.
        stop: a character that the text of these tokens holds or ends with.
        within: the first of these tokens, and the one after the last.
        begin: the character where their text begins.
    """
    first, end = within

    def reach(num_tokens: int) -> int:
        return begin + len(codec.decode(token_ids[first:num_tokens]).rstrip(INCOMPLETE))

    num_tokens = first + bisect_left(range(first, end), stop, key=reach)
    if num_tokens == len(token_ids):
        return num_tokens, len(text)
    return num_tokens, max(reach(num_tokens), stop)
