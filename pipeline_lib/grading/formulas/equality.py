r"""Whether two answers are the same mathematical object: structures part by part, expressions by value.

Conventions, beside those of `Conventions`:
1. A set has no order; a list has one where `any_order` is off; tuples, intervals and matrices always do.
2. An inequality in one letter is the interval that it describes, ``x \in S`` is S where the other side names no letter.
3. ``x = 5`` is 5, ``x = 1, y = 2`` is (1, 2); ``y = 5`` is not ``x = 5``, and ``2x = 4`` is not 4.
4. Equations are the same where one side minus the other is the same up to a constant factor, or vanishes at the same
   points (see `polynomials`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from pipeline_lib.grading.conventions import MIN_ROUNDED_DECIMALS, Conventions
from pipeline_lib.grading.formulas.exact_values import PRIME, InexactError, UndefinedError, exact_value, rational_value
from pipeline_lib.grading.formulas.nodes import (
    STRUCTURES,
    Node,
    UnsupportedError,
    number,
    replace_part,
    symbols_of,
    walk,
)
from pipeline_lib.grading.formulas.settling import EQUATION, assignments_of, settled

MAX_BRANCHES = 3
_INFINITY = Node("constant", "inf")


class UndecidedError(Exception):
    """Only real values tell: the comparison goes to a worker."""


class RealComparison(Protocol):
    """What a worker adds to exact values."""

    def are_equal(self, left: Node, right: Node) -> bool: ...
    def rounds(self, decimal: Node, value: Node) -> bool: ...
    def same_ratio(self, left: Node, right: Node) -> int | None: ...
    def same_zeros(self, left: Node, right: Node) -> bool: ...


class Equality:
    """Compares trees under conventions.

    Args:
        conventions: what counts as equal where opinions differ.
        reals: compares real values; None where only exact ones may be computed.
    """

    def __init__(self, conventions: Conventions, reals: RealComparison | None = None) -> None:
        self._conventions, self._reals = conventions, reals

    def same(self, left: Node, right: Node) -> bool:
        """Whether two answers are equal.

        Raises:
            UndecidedError: only real values tell, and there are none here.
            UnsupportedError: an integral, sum or limit is compared with something that is spelt otherwise.
        """
        left, right = settled(left), settled(right)
        if left == right and not any(n.kind == "quotient" for n in walk(left)):
            return True
        branches = [_branches(side) for side in (left, right)]
        if max(map(len, branches)) > 1 and left.kind not in ("list", "set") and right.kind not in ("list", "set"):
            return self._match(*branches)
        if any(side.kind in ("list", "set") for side in (left, right)):
            return self._same_collections(left, right)
        return self._same_items(left, right)

    def _same_items(self, left: Node, right: Node) -> bool:
        kinds = {left.kind, right.kind}
        if "relation" in kinds:
            return self._same_relations(left, right)
        if "ratio" in kinds:
            return self._same_ratios(left, right)
        if left.kind != right.kind and kinds & STRUCTURES:
            return False
        if left.kind in ("tuple", "matrix", "difference", "such_that"):
            return left.value == right.value and self._same_in_order(left.parts, right.parts)
        if left.kind in ("union", "intersection"):
            return self._match(left.parts, right.parts)
        if left.kind == "dots":
            return True
        return self._same_values(left, right)

    def _same_in_order(self, left: Sequence[Node], right: Sequence[Node]) -> bool:
        return len(left) == len(right) and all(self.same(*pair) for pair in zip(left, right, strict=True))

    def _match(self, left: Sequence[Node], right: Sequence[Node]) -> bool:
        """Whether each of the one equals one of the other; equality is transitive, so the first will do."""
        if len(left) != len(right):
            return False
        rest = list(right)
        for item in left:
            found = next((place for place, other in enumerate(rest) if self.same(item, other)), None)
            if found is None:
                return False
            del rest[found]
        return True

    # --- lists and sets ---

    def _same_collections(self, left: Node, right: Node) -> bool:
        named = [assignments_of(side) for side in (left, right)]
        if named[0] and named[1]:
            return self._same_assignments(named[0], named[1])
        for names, other in ((named[0], right), (named[1], left)):
            if names:
                return self._are_values(names, other)
        items = [_items(side) for side in (left, right)]
        has_order = any(n.kind == "dots" for side in items for n in side)
        has_order |= not self._conventions.any_order and left.kind == right.kind == "list"
        if has_order:
            return self._same_in_order(*items)
        return self._match(*items)

    def _same_assignments(self, left: list[tuple[Node, Node]], right: list[tuple[Node, Node]]) -> bool:
        pairs = [[Node("tuple", "=", pair) for pair in side] for side in (left, right)]
        return self._match(*pairs)

    def _are_values(self, names: list[tuple[Node, Node]], other: Node) -> bool:
        """Whether `other` holds the values without their names: in their order, if the names differ."""
        values = [value for _, value in names]
        items = other.parts if other.kind == "tuple" and other.value == "()" else _items(other)
        if any(item.kind == "relation" for item in items):
            return False
        if len({name for name, _ in names}) == 1 and other.kind != "tuple":
            return self.same(Node("list", ",", tuple(values)), Node("list", ",", tuple(items)))
        return self._same_in_order(values, items)

    # --- relations ---

    def _same_relations(self, left: Node, right: Node) -> bool:
        if left.kind != right.kind:
            relation, other = (left, right) if left.kind == "relation" else (right, left)
            value = _value_of(relation)
            return value is not None and any(self.same(side, other) for side in value)
        if left.value != right.value or len(left.parts) != len(right.parts):
            return False
        if left.value == EQUATION:
            return self._same_equations(left, right)
        if self._same_in_order(left.parts, right.parts):
            return True
        return left.value in ("<", "<=") and self._same_differences(left, right) == 1

    def _same_equations(self, left: Node, right: Node) -> bool:
        sides = [*left.parts, *right.parts]
        if any(side.kind in STRUCTURES or _is_infinite(side) for side in sides):
            return self._same_in_order(left.parts, right.parts)
        if any(n.kind == "opaque" for side in sides for n in walk(side)):
            if self._same_in_order(left.parts, right.parts):
                return True
            raise UnsupportedError("an equation with a sum or an integral")
        return self._same_differences(left, right) is not None

    def _same_differences(self, left: Node, right: Node) -> int | None:
        """The sign of c where ``lhs - rhs`` is the same up to the factor c; 0 where only the zeros are the same."""
        ours, theirs = (_difference(relation) for relation in (left, right))
        is_equation = left.value == EQUATION
        try:
            (our_first, our_second), (first, second) = (
                [exact_value(side, point) for point in (1, 2)] for side in (ours, theirs)
            )
            is_proportional = (our_first * second - our_second * first) % PRIME == 0 and bool(our_first and first)
            if is_proportional and is_equation:
                return 1 if symbols_of(ours) and symbols_of(theirs) else None
            if not is_proportional and not is_equation:
                return None
        except UndefinedError:
            return None
        except InexactError:
            pass
        if self._reals is None:
            raise UndecidedError
        sign = self._reals.same_ratio(ours, theirs) if symbols_of(ours) == symbols_of(theirs) else None
        if sign is None and is_equation and self._reals.same_zeros(ours, theirs):
            return 0
        return sign

    def _same_ratios(self, left: Node, right: Node) -> bool:
        if left.kind != right.kind:
            ratio, other = (left, right) if left.kind == "ratio" else (right, left)
            if len(ratio.parts) != 2 or other.kind in STRUCTURES:
                return False
            return self._same_values(Node("quotient", parts=ratio.parts), other)
        if len(left.parts) != len(right.parts):
            return False
        pairs = [Node("quotient", parts=pair) for pair in zip(left.parts, right.parts, strict=True)]
        return all(self._same_values(*pair) for pair in pairwise(pairs))

    # --- expressions ---

    def _same_values(self, left: Node, right: Node) -> bool:
        if _is_infinite(left) or _is_infinite(right):
            return left == right
        if left.kind == "percent" or right.kind == "percent":
            return self._same_percentages(left, right)
        if any(n.kind in STRUCTURES for side in (left, right) for n in walk(side)):
            return left == right
        try:
            is_equal = exact_value(left) == exact_value(right)
        except UndefinedError:
            return False
        except InexactError:
            return self._same_reals(left, right)
        if is_equal or not self._conventions.rounded or not (_is_decimal(left) or _is_decimal(right)):
            return is_equal
        return self._same_reals(left, right)

    def _same_reals(self, left: Node, right: Node) -> bool:
        if self._reals is None:
            raise UndecidedError
        if self._conventions.rounded and (self._reals.rounds(left, right) or self._reals.rounds(right, left)):
            return True
        if self._reals.are_equal(left, right):
            return True
        if any(n.kind == "opaque" for side in (left, right) for n in walk(side)):
            raise UnsupportedError("a sum or an integral")
        return False

    def _same_percentages(self, left: Node, right: Node) -> bool:
        bare = [side.parts[0] if side.kind == "percent" else side for side in (left, right)]
        if left.kind == right.kind:
            return self._same_values(*bare)
        parts = [Node("quotient", parts=(s.parts[0], number(100))) if s.kind == "percent" else s for s in (left, right)]
        reads_unit, reads_fraction = self._conventions.percent != "fraction", self._conventions.percent != "unit"
        return (reads_unit and self._same_values(*bare)) or (reads_fraction and self._same_values(*parts))


def _branches(node: Node) -> list[Node]:
    r"""Both values of what holds ``\pm``; each with the upper or the lower signs throughout."""
    signs = [n for n in walk(node) if n.kind == "either"]
    if not signs:
        return [node]
    return [_with_signs(node, upper) for upper in ("+", "-")]


def _with_signs(node: Node, upper: str) -> Node:
    for _ in range(MAX_BRANCHES + 1):
        found = next((n for n in walk(node) if n.kind == "either"), None)
        if found is None:
            return node
        inside = found.parts[0]
        node = replace_part(node, found, inside if found.value == upper else Node("negative", parts=(inside,)))
    raise UnsupportedError("many signs")


def _items(node: Node) -> tuple[Node, ...]:
    """What a list or set holds; anything else holds itself, or both its values."""
    if node.kind not in ("list", "set"):
        return tuple(_branches(node))
    return tuple(branch for part in node.parts for branch in _branches(part))


def _value_of(relation: Node) -> list[Node] | None:
    r"""What ``x = 5``, ``5 = x``, ``2 + 3 = 5`` or ``x \in S`` say x is; None where the relation says no such thing."""
    signs = str(relation.value).split()
    parts = list(relation.parts)
    if signs == ["in"]:
        return [parts[1]] if _is_name(parts[0]) else None
    if set(signs) - {"=", "~"}:
        return None
    if _is_name(parts[0]):
        parts, signs = parts[1:], signs[1:]
    elif len(parts) == 2 and _is_name(parts[1]) and not symbols_of(parts[0]):
        return [parts[0]]
    elif symbols_of(parts[0]):
        return None
    if not parts:
        return None
    about = signs.index("~") if "~" in signs else len(parts) - 1
    return [parts[max(about, 0)]]  # what stands before "about", else last


def _is_name(node: Node) -> bool:
    """A letter, ``f(x)``, a product of capitals (a segment), a function of a letter, or a limit."""
    if node.kind in ("symbol", "opaque"):
        return True
    if node.kind == "function":
        return all(part.kind in ("symbol", "number") for part in node.parts) and bool(symbols_of(node))
    if node.kind == "product" and len(node.parts) == 2 and node.parts[0].kind == "symbol":
        is_probability = node.parts[0].value in ("P", "E", "F", "Q", "R", "h", "p", "q", "u", "v", "y")
        if is_probability and node.parts[1].kind in ("symbol", "relation"):
            return True
    return node.kind == "product" and all(n.kind == "symbol" and str(n.value).isupper() for n in node.parts)


def _difference(relation: Node) -> Node:
    left, right = relation.parts
    return Node("sum", parts=(left, Node("negative", parts=(right,))))


def _is_infinite(node: Node) -> bool:
    return any(n == _INFINITY for n in walk(node))


def _is_decimal(node: Node) -> bool:
    inside = node.parts[0] if node.kind in ("negative", "percent") else node
    return inside.kind == "decimal" and rational_value(inside.parts[0]) >= MIN_ROUNDED_DECIMALS
