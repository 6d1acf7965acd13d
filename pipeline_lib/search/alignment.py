"""Which sampled token holds a character of the decoded text.

One idea: a text is taken apart into the texts of its tokens, which are remembered, and joined again as a proof. What a
token spells depends on the tokenizer:

1. its own text, wherever it stands: byte-level tokenizers, as long as no character lies across tokens;
2. its text behind another token: tokenizers that drop the space before a text's first word;
3. nothing by itself: some bytes of a character. Such tokens in a row are decoded together;
4. nothing by itself beside such bytes, though otherwise it does: line ends and others that a tokenizer writes as bytes,
   in a rollout that was cut, or sampled, in the middle of a character.

A codec that none of this fits is asked for the texts of prefixes, some eight of them for every cut. One that knows the
bytes of its tokens tells where each of them ends, and nothing has to be found out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from operator import itemgetter

import numpy as np

from pipeline_lib.policy.protocol import Codec
from pipeline_lib.types import Int32Array, Int64Array

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # how codecs show the first bytes of an unfinished character
FEW = 16  # tokens, the first ones
REMEMBERED_RUN = 8  # tokens; a longer run of bytes will hardly come again

Cut = tuple[int, int]
Runs = dict[int, int]


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


def text_and_ends(token_ids: Int32Array, codec: Codec) -> tuple[str, Int64Array | None]:
    """The text of a rollout, and the character where each token ends; None where only `cuts_at` can tell.

    Shapes: T tokens; the second is `[T]` int64.

    Args:
        token_ids: `[T]` int32, the sampled tokens.
        codec: `decode` is used, and `spelling` where it has one.
    """
    spelling = getattr(codec, "spelling", None)
    if spelling is not None:
        try:
            text, ends = spelling.text_and_ends(token_ids)
        except UnicodeDecodeError:
            return codec.decode(token_ids), None
        if INCOMPLETE not in text:  # one that was sampled stands for something unfinished below
            return text, ends
    return codec.decode(token_ids), None


def cuts_at_ends(ends: Int64Array, stops: Sequence[int]) -> list[Cut]:
    """For each stop the fewest tokens whose text reaches it, and the character where that text ends.

    Args:
        ends: `[T]` int64, where each token ends, in characters.
        stops: characters, ascending, from 0 to the last token's end.
    """
    tokens = ends.searchsorted(stops)
    return list(zip((tokens + 1).tolist(), ends[tokens].tolist(), strict=True))


def cuts_at(token_ids: Int32Array, text: str, stops: Sequence[int], codec: Codec, texts: TokenTexts) -> list[Cut]:
    """For each stop the fewest tokens whose text reaches it, and the character where that text ends.

    Args:
        token_ids: `[T]` int32, the sampled tokens, at least one.
        text: theirs, as `codec` decodes them.
        stops: characters, ascending, from 0 to the text's length.
        codec: only `decode` is used.
        texts: of this codec; filled here.
    """
    proven = (found for found in _readings(token_ids.tolist(), text, codec, texts) if "".join(found[0]) == text)
    pieces, runs = next(proven, ((), {}))
    if not pieces:
        return [_cut_by_prefixes(token_ids, text, codec, stop) for stop in stops]
    ends = np.fromiter(map(len, pieces), np.int64, len(pieces)).cumsum()
    cuts = cuts_at_ends(ends, stops)
    for place, token in enumerate([num_tokens - 1 for num_tokens, _ in cuts] if runs else ()):
        if token in runs:
            begin = int(ends[token - 1]) if token else 0
            cuts[place] = _cut_in_run(token_ids, text, codec, stops[place], (token, runs[token]), begin)
    return cuts


def _readings(ids: list[int], text: str, codec: Codec, texts: TokenTexts) -> Iterator[tuple[Sequence[str], Runs]]:
    """What each token may spell, that of a run at its first token, and where each run ends; see the module.

    A run is given as its first token to the one after its last.
    """
    if text.startswith("".join(_pieces_alone(ids[:FEW], codec, texts))):  # else the others are of no use either
        yield _pieces_alone(ids, codec, texts), {}
    pieces = _pieces_behind(ids, codec, texts)
    yield _with_runs(pieces, ids, texts.parts, codec, texts)
    part = next((token_id for token_id in ids if token_id in texts.parts), None)
    if part is not None:
        joined = {id_ for id_ in set(ids) if _decode(codec, id_, part) != texts.alone[id_] + texts.alone[part]}
        yield _with_runs(pieces, ids, joined | texts.parts, codec, texts)


def _pieces_alone(ids: list[int], codec: Codec, texts: TokenTexts) -> tuple[str, ...]:
    """The text of each token by itself."""
    try:
        return _looked_up(texts.alone, ids)
    except KeyError:
        texts.alone |= {token_id: _decode(codec, token_id) for token_id in ids if token_id not in texts.alone}
        return _looked_up(texts.alone, ids)


def _pieces_behind(ids: list[int], codec: Codec, texts: TokenTexts) -> tuple[str, ...]:
    """The text of each token behind the ones before it; "" where it is part of a character."""
    first = () if ids[0] in texts.parts else _pieces_alone(ids[:1], codec, texts)
    try:
        return (*first, *_looked_up(texts.behind, ids)[len(first) :])
    except KeyError:
        texts.behind |= {id_: _text_behind(codec, id_, texts) for id_ in ids if id_ not in texts.behind}
        return _pieces_behind(ids, codec, texts)


def _with_runs(
    pieces: Sequence[str], ids: list[int], in_runs: set[int], codec: Codec, texts: TokenTexts
) -> tuple[Sequence[str], Runs]:
    """The pieces with the texts of all runs of some tokens, and the runs."""
    runs: Runs = {}
    first = end = -1
    for token in compress(range(len(ids)), map(in_runs.__contains__, ids)):
        first, end = (first if token == end else token), token + 1
        runs[first] = end
    if not runs:
        return pieces, runs
    filled = list(pieces)
    for first, end in runs.items():
        filled[first:end] = [_text_of_run(tuple(ids[first:end]), codec, texts), *[""] * (end - first - 1)]
    return filled, runs


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


def _reach(token_ids: Int32Array, codec: Codec) -> int:
    """Characters that these tokens spell for sure: an unfinished one at the end is left out."""
    return len(codec.decode(token_ids).rstrip(INCOMPLETE))


def _cut_in_run(token_ids: Int32Array, text: str, codec: Codec, stop: int, run: tuple[int, int], begin: int) -> Cut:
    """The cut at a stop within a run, which goes from its first token to before another, its text from `begin` on."""
    first, end = run
    reached = ((n, begin + _reach(token_ids[first:n], codec)) for n in range(first, end + 1))
    num_tokens, char = next(((n, char) for n, char in reached if char >= stop), (end, stop))
    return (num_tokens, len(text)) if num_tokens == len(token_ids) else (num_tokens, max(char, stop))


def _cut_by_prefixes(token_ids: Int32Array, text: str, codec: Codec, stop: int) -> Cut:
    """The cut at a stop, by a binary search over prefixes.

    Right for any codec whose prefixes decode to prefixes, up to one unfinished character.
    """
    num_tokens = bisect_left(range(len(token_ids)), stop, key=lambda n: _reach(token_ids[:n], codec))
    if num_tokens == len(token_ids):
        return num_tokens, len(text)
    return num_tokens, max(_reach(token_ids[:num_tokens], codec), stop)
