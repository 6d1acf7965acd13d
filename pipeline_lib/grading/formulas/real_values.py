r"""Real values: whether two expressions agree where a careful reader would look, to as many digits as it takes.

One idea: first in machine numbers at several points, positive and negative, where most wrong answers show at once;
then two of the points with forty digits and more: as many as the largest and the smallest number on the way differ.

Conventions:
1. Letters are real, of both signs: ``\sqrt{x^2}`` is ``|x|``, not ``x`` (see `Conventions.positive_letters`).
2. Where neither side is real, the point says nothing, unless no point does: ``\sqrt{1/n}`` is ``1/\sqrt{n}``.
3. Odd roots of negative numbers are real.
4. What would take numbers of more than `MAX_MAGNITUDE` bits is not compared.
"""

from __future__ import annotations

import zlib
from fractions import Fraction
from typing import Any

import mpmath

from pipeline_lib.grading.formulas.exact_values import InexactError, UndefinedError, rational_value
from pipeline_lib.grading.formulas.nodes import Node, symbols_of, walk

MAX_MAGNITUDE = 200_000
MAX_DIGITS = 4000
START_DIGITS = 50
_ROUGHLY = 1e-7
_SCALES = (0.7, -0.7, 2.6, -1.9, 1.3, 4.1, 8.0, -9.0, 20.0, -25.0, 70.0, -90.0, 1100.0, -1300.0)
"""The letters' sizes at each point; a letter's own value lies between 0.4 and 1.2 times that."""
_SMOOTH_POINTS = 6
_BENT = frozenset(("abs", "sqrt", "root", "max", "min", "floor", "ceiling"))
"""Functions that may be one formula here and another one there: they are compared at all points."""
_MIXED_FROM = 3
_PLAIN = {
    "sin": "sin",
    "cos": "cos",
    "tan": "tan",
    "cot": "cot",
    "sec": "sec",
    "csc": "csc",
    "sinh": "sinh",
    "cosh": "cosh",
    "tanh": "tanh",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "exp": "exp",
    "ln": "log",
}
_FALLS_APART_ABOVE = 1000  # bits of a sine's argument
_MAX_OF_EXP = 18  # bits of an exponent of e


class TooLargeError(ArithmeticError):
    """A number on the way is too large, or needs too many digits."""


def are_equal(left: Node, right: Node, *, positive_letters: bool = False, log_base: str = "10") -> bool:
    """Whether two expressions agree at every point where both have a value, and at one at least.

    Raises:
        TooLargeError: a number on the way is too large.
        InexactError: an expression holds something that has no value.
    """
    letters = symbols_of(left) | symbols_of(right)
    is_complex = any(n == Node("constant", "i") for side in (left, right) for n in walk(side))
    values = Values(log_base)
    agreeing, unreal = [], []
    for point in range(_num_points(left, right) if letters else 1):
        if positive_letters and _SCALES[point] < 0:
            continue
        verdict = values.agree_roughly(left, right, point, positive_letters)
        if verdict is None:
            continue
        agrees, is_real = verdict
        if is_complex or is_real:
            if not agrees:
                return False
            agreeing.append(point)
        else:
            unreal.append((point, agrees))
    if not agreeing:
        if not unreal or not all(agrees for _, agrees in unreal):
            return False
        agreeing = [point for point, _ in unreal]
    return all(values.agree_exactly(left, right, point, positive_letters) for point in agreeing[:2])


def same_ratio(left: Node, right: Node, *, log_base: str = "10") -> int | None:
    """The sign of the constant c with ``left = c * right``; None where there is no such real constant.

    Raises:
        TooLargeError: a number on the way is too large.
        InexactError: an expression holds something that has no value.
    """
    values, ratios = Values(log_base), []
    with mpmath.workdps(START_DIGITS):
        for point in range(_num_points(left, right)):
            pair = [values.exactly(side, point, False) for side in (left, right)]
            if pair[0] is None or pair[1] is None:
                continue
            if pair[1] == 0:
                return None
            ratios.append(pair[0] / pair[1])
    if not ratios or any(abs(ratio - ratios[0]) > abs(ratios[0]) * mpmath.mpf(10) ** -40 for ratio in ratios):
        return None
    if abs(mpmath.im(ratios[0])) > abs(ratios[0]) * mpmath.mpf(10) ** -40 or ratios[0] == 0:
        return None
    return 1 if mpmath.re(ratios[0]) > 0 else -1


def constant_value(node: Node, digits: int, *, log_base: str = "10") -> Any:
    """The value of an expression without letters, to so many digits; None where it has none."""
    if symbols_of(node):
        return None
    with mpmath.workdps(digits):
        return Values(log_base).exactly(node, 0, False)


class Values:
    """Evaluates expressions at the points."""

    def __init__(self, log_base: str) -> None:
        self._log_base = log_base
        self._span = [0, 0]  # of the binary magnitudes on the way
        self._digits = START_DIGITS

    def agree_roughly(self, left: Node, right: Node, point: int, is_positive: bool) -> tuple[bool, bool] | None:
        """Whether the sides agree in machine numbers, and whether one of them is real; None where that fails."""
        try:
            ours, theirs = (self._evaluate(side, mpmath.fp, point, is_positive) for side in (left, right))
            size = max(abs(ours), abs(theirs))
            if not size < 1e300 or (0 < size < 1e-300):
                raise OverflowError
        except (OverflowError, UndefinedError, ZeroDivisionError, ValueError):
            return self._agree_in_digits(left, right, point, is_positive)
        is_real = any(abs(complex(value).imag) <= _ROUGHLY * max(abs(value), 1e-9) for value in (ours, theirs))
        if abs(ours - theirs) <= _ROUGHLY * size:
            return True, is_real
        if size < 1e-6 or self._loses_digits(ours, theirs):  # cancelled: machine numbers do not tell
            return self._agree_in_digits(left, right, point, is_positive)
        return False, is_real

    def _loses_digits(self, ours: Any, theirs: Any) -> bool:
        return self._span[1] > 40 + min(_magnitude(ours), _magnitude(theirs))

    def _agree_in_digits(self, left: Node, right: Node, point: int, is_positive: bool) -> tuple[bool, bool] | None:
        pair = self._both(left, right, point, is_positive)
        if pair is None:
            return None
        is_real = any(abs(mpmath.im(value)) <= abs(value) * mpmath.mpf(10) ** -20 for value in pair)
        return self._agree(*pair), is_real

    def agree_exactly(self, left: Node, right: Node, point: int, is_positive: bool) -> bool:
        """Whether the sides agree to all digits that are computed."""
        pair = self._both(left, right, point, is_positive)
        return pair is not None and self._agree(*pair)

    def _agree(self, ours: Any, theirs: Any) -> bool:
        digits = START_DIGITS - 12 + int(0.69 * (self._span[1] - self._span[0]))
        return bool(abs(ours - theirs) <= max(abs(ours), abs(theirs)) * mpmath.mpf(10) ** -digits)

    def _both(self, left: Node, right: Node, point: int, is_positive: bool) -> tuple[Any, Any] | None:
        """Both values, with digits enough that nothing on the way cancels unseen."""
        self._digits = START_DIGITS
        for _ in range(2):
            self._span = [0, 0]
            with mpmath.workdps(self._digits + 10):
                pair = [self.exactly(side, point, is_positive) for side in (left, right)]
            if pair[0] is None or pair[1] is None:
                return None
            needed = START_DIGITS + int(1.05 * (self._span[1] - self._span[0]))
            if needed <= self._digits:
                break
            self._digits = needed
            if needed > MAX_DIGITS:
                raise TooLargeError
        return pair[0], pair[1]

    def exactly(self, node: Node, point: int, is_positive: bool) -> Any | None:
        """The value with the digits of mpmath's context; None where there is none."""
        try:
            value = self._evaluate(node, mpmath.mp, point, is_positive)
        except (UndefinedError, ZeroDivisionError, ValueError):
            return None
        except OverflowError:
            raise TooLargeError from None
        return value if mpmath.isfinite(value) else None

    # --- evaluation, in machine numbers (mpmath.fp) or with many digits (mpmath.mp) ---

    def _evaluate(self, node: Node, context: Any, point: int, is_positive: bool) -> Any:
        kind, value, parts = node
        if kind in ("number", "decimal"):
            return self._seen(context.mpf(value.numerator) / context.mpf(value.denominator))  # type: ignore[union-attr]
        if kind == "symbol":
            return context.mpf(_letter_value(str(value), point, is_positive))
        if kind == "constant":
            return _constant(str(value), context)
        if kind == "opaque":
            return context.mpf(_hashed(str(value)) + 0.25)
        if kind == "power":
            return self._seen(self._power(parts[0], parts[1], context, point, is_positive))
        values = [self._evaluate(part, context, point, is_positive) for part in parts]
        return self._seen(self._combine(kind, str(value), values, context))

    def _seen(self, value: Any) -> Any:
        """The value, its magnitude remembered."""
        magnitude = _magnitude(value)
        self._span = [min(self._span[0], magnitude), max(self._span[1], magnitude)]
        if abs(magnitude) > MAX_MAGNITUDE:
            raise TooLargeError
        return value

    def _combine(self, kind: str, name: str, values: list[Any], context: Any) -> Any:
        if kind == "function":
            return self._function(name, values, context)
        if kind == "sum":
            return sum(values[1:], values[0])
        if kind == "product":
            result = values[0]
            for factor in values[1:]:
                result = result * factor
            return result
        if kind == "quotient":
            if values[1] == 0:
                raise UndefinedError
            return values[0] / values[1]
        if kind == "negative":
            return -values[0]
        if kind == "percent":
            return values[0] / 100
        if kind == "degrees":
            return values[0] * context.pi / 180
        raise InexactError(kind)

    def _power(self, base: Node, exponent: Node, context: Any, point: int, is_positive: bool) -> Any:
        below = self._evaluate(base, context, point, is_positive)
        try:
            power = rational_value(exponent)
        except (InexactError, UndefinedError):
            above = self._evaluate(exponent, context, point, is_positive)
            if below == 0:
                raise UndefinedError from None
            _check_power(below, above)
            return context.exp(above * context.log(below))
        if below == 0:
            if power <= 0:
                raise UndefinedError
            return below
        _check_power(below, power)
        if power.denominator == 1:
            return below ** int(power)
        return _root_power(below, power.numerator, power.denominator, context)

    def _function(self, name: str, values: list[Any], context: Any) -> Any:
        first = values[0]
        if name in _PLAIN:
            if _magnitude(first) > (_MAX_OF_EXP if name == "exp" else _FALLS_APART_ABOVE):
                raise TooLargeError
            return getattr(context, _PLAIN[name])(first)
        if name in ("log", "lg"):
            is_natural = name == "log" and self._log_base == "e"
            base = values[1] if len(values) > 1 else context.exp(1) if is_natural else context.mpf(10)
            return context.log(first) / context.log(base)
        return _rarer_function(name, values, context)


def _rarer_function(name: str, values: list[Any], context: Any) -> Any:
    first = values[0]
    if name == "sqrt":
        return context.sqrt(first)
    if name == "abs":
        return abs(first)
    if name == "root":
        return _nth_root(first, values[1], context)
    if name in ("floor", "ceiling"):
        return getattr(context, {"floor": "floor", "ceiling": "ceil"}[name])(first)
    if name == "factorial":
        return _gamma(first + 1, context)
    if name == "binomial":
        upper, lower = values
        return _gamma(upper + 1, context) / (_gamma(lower + 1, context) * _gamma(upper - lower + 1, context))
    if name in ("max", "min") and all(complex(value).imag == 0 for value in values):
        return (max if name == "max" else min)(values)
    if name.startswith("apply "):
        inside = sum((value * (0.6 + _hashed(f"{name} {k}")) for k, value in enumerate(values)), context.mpf(0))
        return context.cos(inside + 5 * _hashed(name)) + 1.5
    raise InexactError(name)


def _num_points(*sides: Node) -> int:
    is_bent = any(_is_bent(n) for side in sides for n in walk(side))
    return len(_SCALES) if is_bent else _SMOOTH_POINTS


def _is_bent(node: Node) -> bool:
    if node.kind == "power":
        try:
            return rational_value(node.parts[1]).denominator != 1
        except (InexactError, UndefinedError):
            return False
    return node.kind == "function" and node.value in _BENT


def _letter_value(name: str, point: int, is_positive: bool) -> float:
    size = abs(_SCALES[point]) * (0.4 + 0.8 * _hashed(f"{point} {name}"))
    if is_positive:
        return size
    if point >= _MIXED_FROM:
        return size if _hashed(f"{name} {point} sign") < 0.5 else -size
    return size if _SCALES[point] > 0 else -size


def _hashed(text: str) -> float:
    """A number in [0, 1) that only depends on the text."""
    return zlib.crc32(text.encode(errors="surrogatepass")) / 2**32


def _constant(name: str, context: Any) -> Any:
    if name == "pi":
        return +context.pi
    if name == "e":
        return context.exp(context.mpf(1))
    if name == "i":
        return context.mpc(0, 1)
    raise InexactError(name)


def _magnitude(value: Any) -> int:
    """The binary logarithm of a number's size, rounded; 0 for 0."""
    size = abs(value)
    if isinstance(size, float):
        return int(mpmath.fp.mag(size)) if 0 < size < float("inf") else 0
    return int(mpmath.mag(size)) if size and mpmath.isfinite(size) else 0


def _check_power(base: Any, exponent: Any) -> None:
    if _magnitude(base) == 0 and abs(base) < 4 and abs(exponent) < 64:
        return
    if _magnitude(exponent) > 24 or abs(exponent) * max(1, abs(_magnitude(base))) > MAX_MAGNITUDE:
        raise TooLargeError


def _root_power(base: Any, numerator: int, denominator: int, context: Any) -> Any:
    if denominator % 2 and complex(base).imag == 0 and complex(base).real < 0:
        size = context.exp(context.log(-base) * numerator / denominator)
        return -size if numerator % 2 else size
    if denominator == 2:
        return context.sqrt(base) ** numerator
    return context.exp(context.log(base) * numerator / denominator)


def _nth_root(value: Any, degree: Any, context: Any) -> Any:
    whole = int(complex(degree).real)
    if degree != whole or not 1 <= whole <= 1000:
        raise InexactError("root")
    if value == 0:
        return value
    return _root_power(value, 1, whole, context)


def _gamma(value: Any, context: Any) -> Any:
    if abs(value) > 10_000:
        raise TooLargeError
    return context.gamma(value)


def is_within(value: Any, written: Fraction, digits: int) -> bool:
    """Whether a real number rounds to `written` at so many digits behind the point."""
    with mpmath.workdps(START_DIGITS + digits):
        if abs(mpmath.im(value)) > mpmath.mpf(10) ** -START_DIGITS:
            return False
        gap = abs(mpmath.re(value) - mpmath.mpf(written.numerator) / written.denominator)
        return bool(gap <= mpmath.mpf(10) ** -digits / 2)
