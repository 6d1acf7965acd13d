r"""Exact values: whether two expressions are the same rational function, square roots of integers included.

One idea: a formula of +, -, *, / and whole powers is evaluated modulo a prime at a random point. Equal formulas have
equal values there; unequal ones differ but for a chance of 10**-40, however close their real values are. The prime is
chosen so that the square root of every prime below 100, and of -1, is a whole number modulo it, so that surds and i
are exact, too. pi and e are taken for letters: both are transcendental.

Source: Schwartz 1980 and Zippel 1979, polynomial identity testing; Shanks 1973, square roots modulo a prime.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from pipeline_lib.grading.formulas.nodes import Node

SMALL_PRIMES = tuple(n for n in range(2, 100) if all(n % d for d in range(2, n)))
PRIME = 1000008 * 4 * math.prod(SMALL_PRIMES) + 1
"""A prime of 143 bits; that it is 1 modulo 8 and modulo every small prime gives each of them a root."""
MAX_BITS = 20_000
MAX_EXPONENT_BITS = 4096
MAX_FACTORIAL = 20_000
MAX_CHOSEN = 64


class InexactError(ArithmeticError):
    """The expression is no rational function of its letters: only real values tell."""


class UndefinedError(ArithmeticError):
    """The expression divides by 0."""


def exact_value(node: Node, point: int = 0) -> int:
    """The value of an expression modulo `PRIME`.

    Args:
        node: an expression, without structures.
        point: which values its letters have.

    Raises:
        InexactError: it is no rational function, or holds a power too large to write down.
        UndefinedError: it divides by 0.
    """
    kind, value, parts = node
    if kind in ("number", "decimal"):
        assert isinstance(value, Fraction)
        return value.numerator * _inverse(value.denominator) % PRIME
    if kind == "symbol" or (kind == "constant" and value in ("pi", "e")):
        return _letter(f"{kind} {value}", point)
    if kind == "constant" and value == "i":
        return _square_root(PRIME - 1)
    if kind == "function":
        return _function(node, point)
    if kind == "power":
        return _power(parts[0], parts[1], point)
    if kind not in _OPERATIONS:
        raise InexactError(kind)
    return _OPERATIONS[kind]([exact_value(part, point) for part in parts]) % PRIME


_OPERATIONS: dict[str, Callable[[list[int]], int]] = {
    "sum": sum,
    "product": math.prod,
    "quotient": lambda values: values[0] * _inverse(values[1]),
    "negative": lambda values: -values[0],
    "percent": lambda values: values[0] * _inverse(100),
}


def rational_value(node: Node) -> Fraction:
    """The exact value of a constant.

    Raises:
        InexactError: it is no rational number, or one of more than `MAX_BITS` bits.
        UndefinedError: it divides by 0.
    """
    kind, value, parts = node
    if kind in ("number", "decimal"):
        assert isinstance(value, Fraction)
        return value
    if kind not in ("sum", "product", "quotient", "negative", "percent", "power", "function"):
        raise InexactError(kind)
    values = [rational_value(part) for part in parts]
    if kind == "quotient" and values[1] == 0:
        raise UndefinedError
    if kind == "power":
        return _rational_power(*values)
    if kind == "function":
        return _rational_function(str(value), values)
    result = {
        "sum": lambda: sum(values, Fraction(0)),
        "product": lambda: math.prod(values, start=Fraction(1)),
        "quotient": lambda: values[0] / values[1],
        "negative": lambda: -values[0],
        "percent": lambda: values[0] / 100,
    }[kind]()
    return _bounded(result)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise InexactError("too large")
    return value


def _rational_power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or (base == 0 and exponent <= 0):
        raise InexactError("power")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS:
        raise InexactError("too large")
    return base ** int(exponent)


def _rational_function(name: str, values: list[Fraction]) -> Fraction:
    if name == "abs":
        return abs(values[0])
    if name in ("floor", "ceiling"):
        return Fraction(math.floor(values[0]) if name == "floor" else math.ceil(values[0]))
    if name in ("max", "min"):
        return max(values) if name == "max" else min(values)
    if any(value.denominator != 1 for value in values):
        raise InexactError(name)
    whole = [int(value) for value in values]
    if name in ("gcd", "lcm"):
        return _bounded(Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole)))
    if name == "factorial" and 0 <= whole[0] <= 1000:
        return Fraction(math.factorial(whole[0]))
    if name == "binomial" and 0 <= whole[1] <= whole[0] <= 1000:
        return Fraction(math.comb(*whole))
    raise InexactError(name)


def _inverse(value: int) -> int:
    if value % PRIME == 0:
        raise UndefinedError
    return pow(value, -1, PRIME)


@lru_cache(maxsize=4096)
def _letter(name: str, point: int) -> int:
    digest = hashlib.blake2b(f"{point} {name}".encode(errors="surrogatepass"), digest_size=24).digest()
    return int.from_bytes(digest, "big") % PRIME


def _power(base: Node, exponent: Node, point: int) -> int:
    power = rational_value(exponent)
    if power.numerator.bit_length() > MAX_EXPONENT_BITS:
        raise InexactError("too large")
    if power.denominator == 2:
        value = _root_of_rational(rational_value(base))
    elif power.denominator == 1:
        value = exact_value(base, point)
    else:
        raise InexactError("root")
    if value == 0 and power <= 0:
        raise UndefinedError
    return pow(value, power.numerator, PRIME)


def _function(node: Node, point: int) -> int:
    name, parts = node.value, node.parts
    if name == "sqrt":
        return _root_of_rational(rational_value(parts[0]))
    if name == "factorial":
        count = rational_value(parts[0])
        if count.denominator != 1 or not 0 <= count <= MAX_FACTORIAL:
            raise InexactError("factorial")
        return _factorial(int(count))
    if name == "binomial":
        return _binomial(exact_value(parts[0], point), rational_value(parts[1]))
    return exact_value(Node("number", rational_value(node)), point)


def _binomial(upper: int, lower: Fraction) -> int:
    """``upper (upper - 1) … / lower!``, a polynomial in `upper`."""
    if lower.denominator != 1 or not 0 <= lower <= MAX_CHOSEN:
        raise InexactError("binomial")
    falling = math.prod((upper - k) % PRIME for k in range(int(lower)))
    return falling * _inverse(math.factorial(int(lower))) % PRIME


@lru_cache(maxsize=256)
def _factorial(count: int) -> int:
    result = 1
    for factor in range(2, count + 1):
        result = result * factor % PRIME
    return result


def _root_of_rational(value: Fraction) -> int:
    """The square root of a rational number, as the product of those of its primes and, below 0, of i."""
    if value == 0:
        return 0
    rest = abs(value.numerator) * value.denominator
    if rest.bit_length() > 128:
        raise InexactError("root")
    result = _inverse(value.denominator) * (_square_root(PRIME - 1) if value < 0 else 1)
    for prime in SMALL_PRIMES:
        while rest % (prime * prime) == 0:
            rest //= prime * prime
            result = result * prime % PRIME
        if rest % prime == 0:
            rest //= prime
            result = result * _square_root(prime) % PRIME
    whole = math.isqrt(rest)
    if whole * whole == rest:
        return result * whole % PRIME
    if rest >= SMALL_PRIMES[-1] ** 2 or pow(rest, (PRIME - 1) // 2, PRIME) != 1:
        raise InexactError("root")  # perhaps no prime, or one without a root here
    return result * _square_root(rest) % PRIME


@lru_cache(maxsize=1024)
def _square_root(value: int) -> int:
    """A square root modulo `PRIME` of a number that has one."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    root_of_one = pow(_non_residue(), odd, PRIME)
    root, rest = pow(value, (odd + 1) // 2, PRIME), pow(value, odd, PRIME)
    while rest != 1:
        order, power = 0, rest
        while power != 1:
            power, order = power * power % PRIME, order + 1
        factor = pow(root_of_one, 1 << (twos - order - 1), PRIME)
        root, root_of_one, twos = root * factor % PRIME, factor * factor % PRIME, order
        rest = rest * root_of_one % PRIME
    return root


@lru_cache(maxsize=1)
def _non_residue() -> int:
    return next(n for n in range(2, 10_000) if pow(n, (PRIME - 1) // 2, PRIME) == PRIME - 1)
