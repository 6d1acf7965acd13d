r"""One form for what is written in several: inequalities and sets as intervals, a solved system as assignments.

Example: ``0 < x < 5``, ``5 > x > 0`` and ``x \in (0, 5)`` all become ``x in (0, 5)``.
"""

from __future__ import annotations

from pipeline_lib.grading.formulas.exact_values import InexactError, UndefinedError, rational_value
from pipeline_lib.grading.formulas.nodes import Node, symbols_of, walk

EQUATION = "="
MEMBERSHIP = "in"
_INFINITY = Node("constant", "inf")
_MINUS_INFINITY = Node("negative", parts=(_INFINITY,))
_REALS = Node("tuple", "()", (_MINUS_INFINITY, _INFINITY))
_FLIPPED = {">": "<", ">=": "<="}


def settled(node: Node) -> Node:
    """The answer in the form in which it is compared; its parts are settled when their turn comes."""
    if node == Node("constant", "reals"):
        return _REALS
    if node.kind == "relation":
        return _settled_relation(node)
    if node.kind == "list":
        return _settled_list(node)
    if node.kind == "such_that":
        return _settled_set(node)
    if node.kind == "difference" and node.parts[0] == Node("constant", "reals"):
        return _without(node.parts[1]) or node
    return node


def assignments_of(node: Node) -> list[tuple[Node, Node]]:
    r"""Names and values of ``x = 1, y = 2``, of ``n = 2, 3, 4`` (three times n) and of ``x = \pm 3``; else nothing."""
    items = node.parts if node.kind == "list" else (node,)
    first = items[0] if items else node
    if not _is_assignment(first):
        return []
    if len(items) > 1 and not any(item.kind == "relation" for item in items[1:]):
        return [(first.parts[0], value) for value in (first.parts[1], *items[1:])]
    if not all(map(_is_assignment, items)):
        return []
    return [(item.parts[0], value) for item in items for value in _both_signs(item.parts[1])]


def _both_signs(value: Node) -> tuple[Node, ...]:
    r"""3 and -3 for ``\pm 3``."""
    if value.kind != "either":
        return (value,)
    return value.parts[0], Node("negative", parts=value.parts)


def _is_assignment(node: Node) -> bool:
    if node.kind != "relation" or node.value != EQUATION or len(node.parts) != 2:
        return False
    name = node.parts[0]
    if name.kind == "tuple":
        return all(part.kind == "symbol" for part in name.parts)
    return name.kind == "symbol" or (name.kind == "function" and str(name.value).startswith("apply "))


def _settled_relation(node: Node) -> Node:
    signs, parts = str(node.value).split(), node.parts
    if signs and all(sign in _FLIPPED for sign in signs):
        signs, parts = [_FLIPPED[sign] for sign in reversed(signs)], tuple(reversed(parts))
        node = Node("relation", " ".join(signs), parts)
    if signs == [EQUATION] and parts[0].kind == parts[1].kind == "tuple" and len(parts[0].parts) == len(parts[1].parts):
        if all(part.kind == "symbol" for part in parts[0].parts):
            pairs = zip(parts[0].parts, parts[1].parts, strict=True)
            return Node("list", ",", tuple(Node("relation", EQUATION, pair) for pair in pairs))
        return node
    if signs == [MEMBERSHIP] and parts[0].kind == "symbol" and parts[1].kind == "set" and parts[1].parts:
        equations = tuple(Node("relation", EQUATION, (parts[0], value)) for value in parts[1].parts)
        return Node("list", "or", equations) if len(equations) > 1 else equations[0]
    if signs == ["!="] and parts[0].kind == "symbol" and not symbols_of(parts[1]):
        split = _without(Node("set", parts=(parts[1],)))
        return Node("relation", MEMBERSHIP, (parts[0], split)) if split else node
    if len(signs) == 1 and signs[0] in ("<", "<=") and _is_size_of_letter(parts[0]) and not symbols_of(parts[1]):
        signs, parts = signs * 2, (Node("negative", parts=(parts[1],)), parts[0].parts[0], parts[1])  # |x| < 3
    interval = _interval(signs, parts) if set(signs) <= {"<", "<="} else None
    return node if interval is None else Node("relation", MEMBERSHIP, interval)


def _is_size_of_letter(node: Node) -> bool:
    return node.kind == "function" and node.value == "abs" and node.parts[0].kind == "symbol"


def _interval(signs: list[str], parts: tuple[Node, ...]) -> tuple[Node, Node] | None:
    """The letter and its interval, where the bounds are constants."""
    letters = [place for place, part in enumerate(parts) if symbols_of(part)]
    if len(letters) != 1 or parts[letters[0]].kind != "symbol" or len(parts) > 3:
        return None
    place = letters[0]
    if len(parts) == 3 and place != 1:
        return None
    low, high = (parts[0], parts[-1]) if len(parts) == 3 else (_MINUS_INFINITY, _INFINITY)
    opening = closing = "<"
    if len(parts) == 3:
        opening, closing = signs
    elif place == 0:
        high, closing = parts[1], signs[0]
    else:
        low, opening = parts[0], signs[0]
    brackets = ("[" if opening == "<=" else "(") + ("]" if closing == "<=" else ")")
    return parts[place], Node("tuple", brackets, (low, high))


def _without(points: Node) -> Node | None:
    """All real numbers but one."""
    if points.kind != "set" or len(points.parts) != 1:
        return None
    point = points.parts[0]
    if any(n.kind == "either" for n in walk(point)):
        return None
    return Node("union", parts=(Node("tuple", "()", (_MINUS_INFINITY, point)), Node("tuple", "()", (point, _INFINITY))))


def _settled_list(node: Node) -> Node:
    """Inequalities in one letter as one interval or a union."""
    items = [settled(part) for part in node.parts]
    are_ranges = all(item.kind == "relation" and item.value == MEMBERSHIP for item in items)
    if not are_ranges or len({item.parts[0] for item in items}) != 1:
        return node
    letter, sets = items[0].parts[0], [item.parts[1] for item in items]
    common = _intersection(sets) if node.value != "or" else None
    if common is None and node.value == "and":
        return node
    union = tuple(part for s in sets for part in (s.parts if s.kind == "union" else (s,)))
    return Node("relation", MEMBERSHIP, (letter, common or Node("union", parts=union)))


def _intersection(sets: list[Node]) -> Node | None:
    """What two half-lines have in common, where that is an interval."""
    if len(sets) != 2 or any(s.kind != "tuple" for s in sets):
        return None
    sets = sorted(sets, key=lambda s: s.parts[0] == _MINUS_INFINITY)
    (low, end), (start, high) = sets[0].parts, sets[1].parts
    if end != _INFINITY or start != _MINUS_INFINITY or low == _MINUS_INFINITY or high == _INFINITY:
        return None
    try:
        is_empty = rational_value(low) >= rational_value(high)
    except (InexactError, UndefinedError):
        is_empty = False
    return None if is_empty else Node("tuple", str(sets[0].value)[0] + str(sets[1].value)[1], (low, high))


def _settled_set(node: Node) -> Node:
    """``{x | x > 3}`` as the interval."""
    element, condition = node.parts[0], settled(node.parts[1])
    if element.kind == "relation" and element.value == MEMBERSHIP and element.parts[1] == Node("constant", "reals"):
        element = element.parts[0]
    if condition.kind == "relation" and condition.value == MEMBERSHIP and condition.parts[0] == element:
        return condition.parts[1]
    return node
