"""What a formula is once it is read: a small immutable tree."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple


class UnreadableError(ValueError):
    """The text is no formula that `reader` knows; the message says where it stopped."""


class UnsupportedError(UnreadableError):
    """The text is a formula of a kind that only Math-Verify reads, such as a matrix product."""


class Node(NamedTuple):
    r"""One operation, value or structure.

    Values: ``number`` (a Fraction), ``decimal`` (the same; its one part is the number of digits behind the point),
    ``symbol`` (its name), ``constant`` (pi, e, i, inf, reals), ``opaque`` (a sum, an integral: compared by its
    spelling). Operations: ``sum``, ``product``, ``quotient``, ``power``, ``negative``,
    ``function`` (its name in `value`), ``degrees``, ``percent``, ``either`` (``\pm``: value "+", ``\mp``: "-").
    Structures: ``list``, ``tuple`` (value: its brackets), ``set``, ``union``, ``intersection``, ``difference``,
    ``matrix`` (value: its columns), ``relation`` (value: its signs, with a space between), ``ratio``, ``such_that``,
    ``dots``.
    """

    kind: str
    value: Fraction | str | None = None
    parts: tuple[Node, ...] = ()


STRUCTURES = frozenset(
    ("list", "tuple", "set", "union", "intersection", "difference", "matrix", "relation", "ratio", "such_that", "dots")
)


def number(value: int | Fraction) -> Node:
    """The node of a number."""
    return Node("number", Fraction(value))


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    waiting = [node]
    while waiting:
        top = waiting.pop()
        yield top
        waiting.extend(top.parts)


def symbols_of(node: Node) -> frozenset[str]:
    """The names of all letters."""
    return frozenset(str(n.value) for n in walk(node) if n.kind == "symbol")


def replace_part(node: Node, old: Node, new: Node) -> Node:
    """The tree with every `old` exchanged for `new`."""
    if node == old:
        return new
    if not node.parts:
        return node
    return Node(node.kind, node.value, tuple(replace_part(part, old, new) for part in node.parts))


def with_sign(sign: str, node: Node) -> Node:
    r"""The node behind a sign: ``+``, ``-``, ``\pm`` or ``\mp``."""
    if sign == "+":
        return node
    if sign == "-":
        return Node("negative", parts=(node,))
    return Node("either", "+" if sign == r"\pm" else "-", (node,))


def times(left: Node, right: Node) -> Node:
    """The product; a number times a matrix is a matrix."""
    matrices = [node for node in (left, right) if node.kind == "matrix"]
    if len(matrices) > 1:
        raise UnsupportedError("a product of matrices")
    if matrices:
        factor = right if left is matrices[0] else left
        return Node("matrix", matrices[0].value, tuple(times(factor, part) for part in matrices[0].parts))
    factors = left.parts if left.kind == "product" else (left,)
    return Node("product", parts=(*factors, right))
