r"""Reads a whole answer: lists, tuples, sets, intervals, matrices and relations around expressions.

Example: ``read(r"x=1, y=2").kind == "list"``
"""

from __future__ import annotations

from functools import lru_cache

from pipeline_lib.grading.formulas.expressions import ExpressionReader
from pipeline_lib.grading.formulas.nodes import Node, UnreadableError, UnsupportedError
from pipeline_lib.grading.formulas.tokens import tokens_of

RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    r"\le": "<=",
    r"\ge": ">=",
    r"\ne": "!=",
    r"\approx": "~",
    r"\in": "in",
    r"\notin": "notin",
    r"\equiv": "mod",
    r"\sim": "sim",
}
_SET_OPERATIONS = {r"\cup": "union", r"\cap": "intersection", r"\setminus": "difference"}
_SEPARATORS = {",": ",", ";": ",", r"\lor": "or", r"\land": "and"}
_CLOSING = {"(": (")", "]"), "[": ("]", ")")}
_MATRICES = frozenset(("pmatrix", "bmatrix", "matrix", "array", "smallmatrix", "Bmatrix"))
MAX_ITEMS = 200


def read(text: str, *, mixed_numbers: bool = True) -> Node:
    r"""The tree of one answer in normal spelling (see `spelling.normalise_answer`).

    Args:
        text: at most a few hundred characters: the tree is read by recursion, to a fixed depth.
        mixed_numbers: whether ``1 1/2`` is 3/2; else it is a product.

    Raises:
        UnreadableError: it is no formula, or an ambiguous one.
        UnsupportedError: it holds an operation that is not known here.
    """
    found = _read(text, mixed_numbers)
    if isinstance(found, UnreadableError):
        raise found
    return found


@lru_cache(maxsize=4096)  # one gold is compared with all rollouts of its problem
def _read(text: str, mixed_numbers: bool) -> Node | UnreadableError:
    try:
        return AnswerReader(tokens_of(text), mixed_numbers=mixed_numbers).answer()
    except UnreadableError as error:
        return error.with_traceback(None)


class AnswerReader(ExpressionReader):
    """`ExpressionReader` with the structures that an answer may be."""

    def answer(self) -> Node:
        node = self._list()
        if self._next.kind != "end":
            raise UnreadableError(f"{self._next.text} after the end")
        is_bracketed = self._tokens[0] == ("sign", "[") and node.kind not in ("tuple", "list", "relation", "union")
        if is_bracketed and self._tokens[self._place - 1] == ("sign", "]"):
            return Node("tuple", "[]", (node,))  # [5] is not 5
        return node

    def _list(self) -> Node:
        items, separators = [self._item()], set()
        while self._next.kind != "text" and self._next.text in _SEPARATORS:
            separators.add(_SEPARATORS[self._take().text])
            while self._next.text in _SEPARATORS:  # ", or"
                separators.add(_SEPARATORS[self._take().text])
            if self._next.kind == "end":
                break
            items.append(self._item())
            if len(items) > MAX_ITEMS:
                raise UnreadableError("too many items")
        if len(items) == 1:
            return items[0]
        value = "or" if "or" in separators else "and" if "and" in separators else ","
        return Node("list", value, tuple(items))

    def _item(self) -> Node:
        """A relation, a ratio or a value."""
        first = self._set_expression()
        parts, signs = [first], []
        while self._next.kind in ("sign", "command") and self._next.text in RELATIONS:
            signs.append(RELATIONS[self._take().text])
            parts.append(self._set_expression())
        if not signs:
            return self._ratio(first) if self._next == ("sign", ":") and not self._in_set else first
        if self._take_if(r"\pmod"):
            parts.append(self._argument())
        return Node("relation", " ".join(signs), tuple(parts))

    def _ratio(self, first: Node) -> Node:
        parts = [first]
        while self._take_if(":"):
            parts.append(self._set_expression())
        return Node("ratio", parts=tuple(parts))

    def _set_expression(self) -> Node:
        node = self._sum_or_dots()
        while self._next.kind == "command" and self._next.text in _SET_OPERATIONS:
            kind = _SET_OPERATIONS[self._take().text]
            other = self._sum_or_dots()
            parts = (*node.parts, other) if node.kind == kind and kind != "difference" else (node, other)
            node = Node(kind, parts=parts)
        return node

    def _sum_or_dots(self) -> Node:
        if self._take_if(r"\ldots"):
            return Node("dots")
        return self.sum()

    def _inside_brackets(self, opening: str) -> Node:
        inside = self._list()
        closing = self._take().text
        if closing not in _CLOSING[opening]:
            raise UnreadableError(f"{closing or 'the end'} closes {opening}")
        if inside.kind == "list":
            if inside.value != ",":
                return inside
            return Node("tuple", opening + closing, inside.parts)
        if (opening, closing) not in (("(", ")"), ("[", "]")):
            raise UnreadableError(f"{opening}{closing} around one value")
        return inside

    def _structure(self, name: str) -> Node:
        if name == r"\{":
            return self._set()
        if name == r"\emptyset":
            return Node("set")
        if name == r"\langle":
            inside = self._list()
            self._take(r"\rangle")
            return Node("tuple", "<>", inside.parts if inside.kind == "list" else (inside,))
        if name.startswith(r"\begin{"):
            return self._matrix(name[len(r"\begin{") : -1])
        raise UnreadableError(f"unknown command {name}")

    def _set(self) -> Node:
        if self._take_if(r"\}"):
            return Node("set")
        bars, self._open_bars, self._in_set = self._open_bars, 1, True  # so that a bar or colon separates
        first = self._list()
        self._open_bars, self._in_set = bars, False
        if self._take_if("|", ":", r"\mid"):
            condition = self._list()
            self._take(r"\}")
            return Node("such_that", parts=(first, condition))
        self._take(r"\}")
        return Node("set", parts=first.parts if first.kind == "list" else (first,))

    def _matrix(self, environment: str) -> Node:
        if environment not in _MATRICES:
            raise UnsupportedError(environment)
        if environment == "array" and self._next == ("sign", "{"):
            self._spelt_group()
        elif environment == "array" and self._next.kind == "letter":  # {c}, its braces idle
            self._take()
        rows: list[list[Node]] = [[]]
        end = rf"\end{{{environment}}}"
        while self._next.text != end:
            if self._take_if(r"\\"):
                rows.append([])
            elif not self._take_if("&"):
                rows[-1].append(self.sum())
            if self._next.kind == "end" or len(rows) > MAX_ITEMS:
                raise UnreadableError("an open matrix")
        self._take(end)
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) > 1:
            raise UnreadableError("rows of different lengths")
        return Node("matrix", str(len(rows[0])), tuple(cell for row in rows for cell in row))
