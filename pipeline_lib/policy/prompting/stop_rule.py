"""What ends an answer besides the model's own tokens: a stop string, or the end of the line that gives the answer.

One idea: one rule for all engines, on the text of the answer so far. An engine that sees its tokens as they come stops
there; one that does not is cut afterwards, at the same place. What was sampled past the end is not kept, and since no
token ended such an answer, none is taught in its place: training scores the tokens that the answer is made of.

An answer ends before the stop string and before white space in front of it. Where the string begins inside of a token
that also spells the answer's last characters, that token is kept whole and its text is cut.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from pipeline_lib.policy.protocol import Codec, SampleRequest
from pipeline_lib.types import Int32Array

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # how codecs show the first bytes of an unfinished character
AnswerMark = Literal["hashes", "box"]
_MARKS = {
    "hashes": re.compile(r"####[^\w\n]*\d"),  # with its number: `#### Step one` is a heading
    "box": re.compile(r"\\(?:boxed|fbox)\s*\{"),
}


class AnswerEnd(NamedTuple):
    """Where an answer ended, in the tokens that were sampled for it.

    Args:
        num_tokens: the first ones, which are kept.
        num_chars: of what these spell, the answer's own.
    """

    num_tokens: int
    num_chars: int


@dataclass(frozen=True, slots=True)
class StopRule:
    """What a codec's answers are ended by.

    Args:
        strings: any of them ends an answer; none is empty.
        answer_mark: the answer ends with the line that announces it so, once that line is complete and its braces
            closed; None looks for no such line.
    """

    strings: tuple[str, ...] = ()
    answer_mark: AnswerMark | None = None

    def __bool__(self) -> bool:
        return bool(self.strings) or self.answer_mark is not None

    @property
    def last_bytes(self) -> frozenset[int]:
        """Bytes of which one is in every token that can complete an end."""
        texts = (*self.strings, *(("\n",) if self.answer_mark else ()))
        return frozenset(text.encode()[-1] for text in texts)

    def first_end(self, text: str, start: int = 0) -> int | None:
        r"""The character at which the answer `text` ends by the rule; None where it goes on.

        What ends it is the stop that is complete first, of two the one that begins first.

        Args:
            text: of the answer so far.
            start: characters that were there before; what is complete in them has ended nothing.

        Example: with the string "Q:", ``first_end("4\n\nQ: 2+2")`` is 1.
        """
        found = [*self._strings_in(text, start), *self._answer_lines_in(text, start)]
        if not found:
            return None
        begin = min(found, key=lambda span: (span[1], span[0]))[0]
        return len(text[:begin].rstrip())

    def _strings_in(self, text: str, start: int) -> Iterator[tuple[int, int]]:
        """Begin and end of the first occurrence of each string that ends after `start`."""
        for string in self.strings:
            begin = text.find(string, max(0, start - len(string) + 1))
            if begin >= 0:
                yield begin, begin + len(string)

    def _answer_lines_in(self, text: str, start: int) -> Iterator[tuple[int, int]]:
        """The line break behind the first line with an answer that is complete after `start`."""
        for mark in _MARKS[self.answer_mark].finditer(text) if self.answer_mark else ():
            line_break = _end_of_line(text, mark.start())
            if line_break is None:
                return
            if line_break >= start:
                yield line_break, line_break + 1
                return


NO_STOP = StopRule()


class StopWatch:
    """Looks at one answer as it grows.

    Args:
        rule: what may end it.
        codec: of its tokens.
        request: what it is the answer to; its prefix is part of the answer.
    """

    def __init__(self, rule: StopRule, codec: Codec, request: SampleRequest) -> None:
        self._rule, self._codec, self._request = rule, codec, request
        self._last_bytes = rule.last_bytes
        self._num_seen = 0

    def look(self, token_ids: Int32Array | Sequence[int]) -> AnswerEnd | None:
        """Where the answer has ended; None while it goes on.

        Args:
            token_ids: `[T]`, all that was sampled; of what an earlier look saw nothing is looked at again.
        """
        new, self._num_seen = token_ids[self._num_seen :], len(token_ids)
        if not any(self._may_complete(int(token)) for token in new):
            return None
        return end_of_answer(token_ids, self._request, self._codec, self._rule)

    def _may_complete(self, token_id: int) -> bool:
        """False for most tokens, so that a text is joined for few; any may where nobody knows its bytes."""
        spelling = getattr(self._codec, "spelling", None)
        return spelling is None or not self._last_bytes.isdisjoint(spelling.token_bytes[token_id])


def rule_of(codec: Codec) -> StopRule:
    """What ends this codec's answers; nothing where it has no rule."""
    rule: StopRule = getattr(codec, "stop", NO_STOP)
    return rule


def watch_for(codec: Codec, request: SampleRequest) -> StopWatch | None:
    """What watches the answer to a request; None where nothing but a token ends it."""
    rule = rule_of(codec)
    return StopWatch(rule, codec, request) if rule else None


def end_of_answer(
    token_ids: Int32Array | Sequence[int], request: SampleRequest, codec: Codec, rule: StopRule
) -> AnswerEnd | None:
    """Where sampled tokens end by the rule; None where they do not.

    Shapes: T tokens.

    Args:
        token_ids: `[T]`, all that was sampled, without a token that ended it.
        request: what was asked; the answer begins with its prefix.
        codec: only `decode` is used.
        rule: what ends answers.
    """
    new = np.asarray(token_ids, dtype=np.int32)
    prefix = request.token_ids[len(request.token_ids) - request.num_prefix_tokens :]
    start = len(_decoded(codec, prefix).rstrip(INCOMPLETE))
    end = rule.first_end(_decoded(codec, prefix, new), start)
    if end is None:
        return None
    if end <= start:
        return AnswerEnd(0, 0)
    num_tokens = bisect_left(
        range(len(new)), end, key=lambda n: len(_decoded(codec, prefix, new[:n]).rstrip(INCOMPLETE))
    )
    kept = new[:num_tokens]
    return AnswerEnd(num_tokens, len(_decoded(codec, kept)) - len(_decoded(codec, prefix, kept)) + end)


def _decoded(codec: Codec, *parts: Int32Array) -> str:
    ids = np.concatenate(parts)
    return codec.decode(ids) if len(ids) else ""


def _end_of_line(text: str, start: int) -> int | None:
    """The first line break from `start` on outside of braces; None where there is none yet."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if text[place] == "\n" and depth <= 0:
            return place
    return None
