"""Polynomial equations: whether two vanish at the same points; by sympy, in a worker only."""

from __future__ import annotations

from typing import Any

from pipeline_lib.grading.formulas.exact_values import InexactError, UndefinedError, rational_value
from pipeline_lib.grading.formulas.nodes import Node

MAX_DEGREE = 24
MAX_TERMS = 400


def same_zeros(left: Node, right: Node) -> bool:
    """Whether two polynomials with rational coefficients vanish at the same complex points; False for all else.

    They do where their square-free parts are the same up to a factor (Hilbert's Nullstellensatz).
    """
    import sympy

    try:
        sides = [sympy.Poly(_expression(side, sympy)) for side in (left, right)]
    except (InexactError, UndefinedError, sympy.polys.polyerrors.BasePolynomialError):
        return False
    if any(p.total_degree() > MAX_DEGREE or len(p.terms()) > MAX_TERMS for p in sides):
        return False
    if set(sides[0].gens) != set(sides[1].gens):
        return False
    order = sorted(sides[0].gens, key=str)
    ours, theirs = (sympy.Poly(p.as_expr(), *order, domain="QQ").sqf_part().monic() for p in sides)
    return bool(ours == theirs)


def _expression(node: Node, sympy: Any) -> Any:
    if node.kind == "symbol":
        return sympy.Symbol(str(node.value))
    try:
        value = rational_value(node)
        return sympy.Rational(value.numerator, value.denominator)
    except InexactError:
        pass
    if node.kind == "power":
        exponent = rational_value(node.parts[1])
        if exponent.denominator != 1 or not 0 <= exponent <= MAX_DEGREE:
            raise InexactError("power")
        return _expression(node.parts[0], sympy) ** int(exponent)
    if node.kind == "quotient":
        return _expression(node.parts[0], sympy) / _rational(node.parts[1], sympy)
    parts = [_expression(part, sympy) for part in node.parts]
    if node.kind == "sum":
        return sympy.Add(*parts)
    if node.kind == "product":
        return sympy.Mul(*parts)
    if node.kind == "negative":
        return -parts[0]
    raise InexactError(node.kind)


def _rational(node: Node, sympy: Any) -> Any:
    value = rational_value(node)
    if value == 0:
        raise UndefinedError
    return sympy.Rational(value.numerator, value.denominator)
