"""Text to token ids and back, by the policy's own tokenizer and its chat template.

Search decodes every rollout, in the engine's loop, so decoding joins the bytes of tokens, which are looked up once,
where that is all that the tokenizer's decoder does; see `spelling_of`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from pipeline_lib.policy.prompting.conversation import Conversation, PromptTemplate
from pipeline_lib.policy.prompting.stop_rule import NO_STOP, StopRule
from pipeline_lib.types import Int32Array, Int64Array


class TokenizerCodec:
    """A Hugging Face tokenizer as a `Codec`.

    Args:
        tokenizer: a Hugging Face one; nothing is loaded here.
        conversation: what is said around a question.
        stop: what ends an answer besides the model's own end tokens.

    Raises:
        ConfigError: the chat template has no use for what is said.
    """

    def __init__(self, tokenizer: Any, conversation: Conversation | None = None, *, stop: StopRule = NO_STOP) -> None:
        self.tokenizer = tokenizer
        self.conversation = conversation or Conversation()
        self.template = PromptTemplate(tokenizer, self.conversation)
        self.stop = stop
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self.spelling = None if self._backend is None else spelling_of(self._backend)

    def encode_prompt(self, question: str) -> Int32Array:
        return np.asarray(self.template.ids(self.conversation.turns(question)), dtype=np.int32)

    def encode(self, text: str) -> Int32Array:
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def decode(self, token_ids: Int32Array) -> str:
        ids = token_ids.tolist()
        if self.spelling is not None:
            try:
                return self.spelling.text(ids)
            except UnicodeDecodeError:  # a character lacks some of its bytes; how that is shown is the tokenizer's
                pass
        if self._backend is not None:  # what the tokenizer itself calls, a third of the time
            return str(self._backend.decode(ids, skip_special_tokens=True))
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@dataclass(slots=True)
class Spelling:
    """Decodes as a tokenizer does whose tokens are bytes that are joined.

    Args:
        backend: a tokenizer of the `tokenizers` library.
        is_byte_level: its tokens spell bytes as letters; else they are text, with ``▁`` for a space, or ``<0x0A>``.
        drops_first_space: of a text.
    """

    backend: Any
    is_byte_level: bool
    drops_first_space: bool = False
    token_bytes: _TokenBytes = field(init=False)

    def __post_init__(self) -> None:
        self.token_bytes = _TokenBytes(self.backend, _of_letters if self.is_byte_level else _of_text)

    def text(self, ids: list[int]) -> str:
        """What the tokens spell, special ones left out.

        Raises:
            UnicodeDecodeError: it is not made of whole characters.
        """
        return self._without_first_space(self.token_bytes.joined(ids).decode())

    def text_and_ends(self, token_ids: Int32Array) -> tuple[str, Int64Array]:
        """What the tokens spell, and how many whole characters of it the first tokens spell, up to each one.

        Shapes: T tokens; the second is `[T]` int64.

        Raises:
            UnicodeDecodeError: it is not made of whole characters.

        Example: three tokens of "a", the first byte of "é" and the second one give "aé" and 1, 1, 2.
        """
        joined = self.token_bytes.joined(token_ids.tolist())
        text = joined.decode()
        ends = self.token_bytes.num_begun[token_ids].cumsum(dtype=np.int64)
        if len(text) < len(joined):
            for token in self.token_bytes.goes_on[token_ids].nonzero()[0].tolist():
                self._take_back(ends, token_ids, token)
        kept = self._without_first_space(text)
        return kept, ends if kept is text else np.maximum(ends - 1, 0)

    def _take_back(self, ends: Int64Array, token_ids: Int32Array, token: int) -> None:
        """Leaves a character that goes on in a token out of what the tokens before it spell."""
        while token > 0:
            token -= 1
            ends[token] -= 1
            if self.token_bytes[int(token_ids[token])]:  # not a special one between
                return

    def _without_first_space(self, text: str) -> str:
        return text.removeprefix(" ") if self.drops_first_space else text


def spelling_of(backend: Any) -> Spelling | None:
    """How a tokenizer's decoder spells; None where it does something else than join bytes.

    Args:
        backend: a tokenizer of the `tokenizers` library.
    """
    if backend.decoder is None:
        return None
    decoder = json.loads(backend.decoder.__getstate__())
    if decoder["type"] == "ByteLevel":
        return Spelling(backend, is_byte_level=True)
    first_space = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    parts = decoder.get("decoders", [])
    if parts[:3] == _BYTE_FALLBACK and parts[3:] in ([], [first_space]):
        return Spelling(backend, is_byte_level=False, drops_first_space=len(parts) > 3)
    return None


class _TokenBytes(dict[int, bytes]):
    """The bytes of each token, none for special and unknown ones, filled as they are asked for.

    By token id, for those that were asked for: `num_begun` is how many characters begin in each, `goes_on` whether its
    first byte belongs to a character that began before.
    """

    def __init__(self, backend: Any, bytes_of: Callable[[str], bytes]) -> None:
        self._backend, self._bytes_of = backend, bytes_of
        self._special = {id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special}
        self.num_begun = np.zeros(backend.get_vocab_size(), dtype=np.int32)
        self.goes_on = np.zeros(backend.get_vocab_size(), dtype=np.bool_)

    def joined(self, ids: list[int]) -> bytes:
        """The bytes of all `ids`; looked up together, which is several times as fast as one by one."""
        return b"".join(itemgetter(*ids)(self)) if len(ids) > 1 else b"".join(map(self.__getitem__, ids))

    def __missing__(self, token_id: int) -> bytes:
        name = None if token_id in self._special else self._backend.id_to_token(token_id)
        found = self[token_id] = b"" if name is None else self._bytes_of(name)
        if token_id >= len(self.goes_on):  # an engine may sample from more rows than the tokenizer has entries
            self.num_begun = np.pad(self.num_begun, (0, token_id + 1))
            self.goes_on = np.pad(self.goes_on, (0, token_id + 1))
        begins = [byte & 0xC0 != 0x80 for byte in found]
        self.num_begun[token_id], self.goes_on[token_id] = sum(begins), not all(begins[:1])
        return found


_BYTE_FALLBACK = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_BYTE_NAME = re.compile("<0x([0-9A-Fa-f]{2})>")
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that are letters as they are
_HIDDEN = sorted({*range(0x100)}.difference(_VISIBLE))  # the others are letters from 256 on, as GPT-2 set it
_BYTES_OF_LETTERS = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}


def _of_letters(name: str) -> bytes:
    """The bytes of a byte-level token; an added token may have other letters, and is its own text then."""
    try:
        return bytes(map(_BYTES_OF_LETTERS.__getitem__, name))
    except KeyError:
        return name.encode()


def _of_text(name: str) -> bytes:
    """The bytes of a token that is text or the name of a byte."""
    byte = _BYTE_NAME.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()
