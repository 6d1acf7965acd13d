"""A place in a list of tokens."""

from __future__ import annotations

from pipeline_lib.grading.formulas.nodes import UnreadableError
from pipeline_lib.grading.formulas.tokens import Token

END = Token("end", "")


class Cursor:
    """What a reader holds on to while it reads.

    Args:
        tokens: of one answer, as `tokens.tokens_of` finds them.
        mixed_numbers: whether ``1 1/2`` is 3/2; else it is a product.
    """

    def __init__(self, tokens: list[Token], *, mixed_numbers: bool = True) -> None:
        self._tokens, self._place, self._depth = [*tokens, END, END, END, END], 0, 0
        self._mixed_numbers = mixed_numbers
        self._open_bars = 0
        self._in_function = self._in_set = False

    @property
    def _next(self) -> Token:
        return self._tokens[self._place]

    def _take(self, text: str | None = None) -> Token:
        token = self._next
        if text is not None and (token.text != text or token.kind == "text"):
            raise UnreadableError(f"expected {text}, found {token.text or 'the end'}")
        self._place += 1
        return token

    def _take_if(self, *texts: str) -> bool:
        found = self._next.kind != "text" and self._next.text in texts and self._next.kind != "end"
        self._place += found
        return found
