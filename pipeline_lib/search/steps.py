"""Cuts a sampled rollout into reasoning steps without ever re-tokenising it.

One idea: the delimiter is looked for in the text, the cut is made between tokens. A step ends
with the token in which its delimiter ends, whatever else that token holds, so the tokens of all
steps in a row are exactly the tokens that were sampled.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

from pipeline_lib.policy.protocol import Codec
from pipeline_lib.search.markdown import step_ends
from pipeline_lib.types import Int32Array

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # how codecs show the first bytes of an unfinished character


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it was sampled.

    Args:
        text: delimiter included.
        token_ids: `[T]` int32.
    """

    text: str
    token_ids: Int32Array

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def split_steps(
    token_ids: Int32Array,
    codec: Codec,
    delimiter: str,
    *,
    markdown: bool = False,
    pieces: dict[int, str] | None = None,
) -> list[Step]:
    r"""The steps of one rollout; both their texts and their tokens add up to the rollout's.

    A step of nothing but white space belongs to the step before it, or, at the very start, to the
    one after it. A rollout without any token has no step.

    Args:
        token_ids: `[T]` int32, the sampled tokens.
        codec: only `decode` is used.
        delimiter: what ends a step, not empty.
        markdown: whether a line that leaves something open stays with the next one, see `markdown.step_ends`.
        pieces: texts of single tokens, filled here; share one between calls to save decoding.

    Example: "1+1=2\n\n#### 2" at delimiter "\n" gives "1+1=2\n\n" and "#### 2".
    """
    if len(token_ids) == 0:
        return []
    text = codec.decode(token_ids)
    stops = _delimiter_ends(text, delimiter)
    if markdown:
        stops = step_ends(text, stops)
    ends = _char_ends(token_ids, text, codec, {} if pieces is None else pieces)
    if ends is None:
        cuts = [_cut_by_prefixes(token_ids, text, codec, stop) for stop in stops]
    else:
        tokens = (bisect_left(ends, stop) for stop in stops)
        cuts = [(token + 1, ends[token]) for token in tokens]
    borders = _without_blank_steps(text, [(0, 0), *cuts, (len(token_ids), len(text))])
    return [Step(text[c0:c1], token_ids[t0:t1]) for (t0, c0), (t1, c1) in pairwise(borders)]


def _delimiter_ends(text: str, delimiter: str) -> Iterator[int]:
    """Where each delimiter ends, in characters, from left to right without overlap."""
    stop = 0
    while (start := text.find(delimiter, stop)) >= 0:
        stop = start + len(delimiter)
        yield stop


def _char_ends(token_ids: Int32Array, text: str, codec: Codec, pieces: dict[int, str]) -> list[int] | None:
    """`[T]` where each token ends in the text; None when single tokens do not spell it out.

    They do not when a character's bytes are spread over tokens, or when decoding looks at a
    token's neighbours.
    """
    ids = token_ids.tolist()
    for position, token_id in enumerate(ids):
        if token_id not in pieces:
            pieces[token_id] = codec.decode(token_ids[position : position + 1])
    spelled = [pieces[token_id] for token_id in ids]
    return list(accumulate(map(len, spelled))) if "".join(spelled) == text else None


def _cut_by_prefixes(token_ids: Int32Array, text: str, codec: Codec, stop: int) -> tuple[int, int]:
    """The fewest tokens whose text reaches character `stop`, and where that text ends.

    A binary search over prefixes: about eight decodes per step, and right for any codec whose
    prefixes decode to prefixes, up to one unfinished character.
    """

    def reach(num_tokens: int) -> int:
        return len(codec.decode(token_ids[:num_tokens]).rstrip(INCOMPLETE))

    num_tokens = bisect_left(range(len(token_ids)), stop, key=reach)
    if num_tokens == len(token_ids):
        return num_tokens, len(text)
    return num_tokens, max(reach(num_tokens), stop)


def _without_blank_steps(text: str, borders: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Borders (token, character) with every blank step joined to its neighbour."""
    kept = [borders[0]]
    for border in borders[1:]:
        if text[kept[-1][1] : border[1]].strip():
            kept.append(border)
        elif len(kept) > 1:
            kept[-1] = border
    if len(kept) == 1:
        kept.append(borders[-1])
    return kept
