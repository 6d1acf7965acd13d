"""Final answers made by chance, with all the small mistakes that make another answer of each."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

LETTERS = "xyzabcmnpqrstkuvw"
_CASED = re.compile(r"(?<![A-Za-z\\{])[a-df-hj-zA-DF-HJ-Z](?![A-Za-z])")


def _numbers(draw: random.Random, count: int, low: int = 2, high: int = 97) -> list[int]:
    return draw.sample(range(low, high), count)


def _integer(draw: random.Random) -> str:
    return str(draw.choice((1, -1)) * draw.randint(11, 10**7))


def _decimal(draw: random.Random) -> str:
    return f"{draw.randint(1, 999)}.{draw.randint(11, 99)}"


def _fraction(draw: random.Random) -> str:
    a, b = _numbers(draw, 2)
    return draw.choice(("", "-")) + rf"\frac{{{a}}}{{{b}}}"


def _surd(draw: random.Random) -> str:
    a, b, c = _numbers(draw, 3, 3, 30)
    return draw.choice((rf"{a}\sqrt{{{b}}}", rf"{c}+{a}\sqrt{{{b}}}", rf"\frac{{{c}-\sqrt{{{b}}}}}{{{a}}}"))


def _multiple_of_pi(draw: random.Random) -> str:
    a, b = _numbers(draw, 2)
    return draw.choice((rf"{a}\pi", rf"\frac{{{a}\pi}}{{{b}}}", rf"{a}+{b}\pi"))


def _polynomial(draw: random.Random) -> str:
    (x, y), (a, b, c) = draw.sample(LETTERS, 2), _numbers(draw, 3)
    return draw.choice(
        (
            f"{a}{x}^2+{b}{x}-{c}",
            f"{x}^3-{a}{x}{y}+{b}{y}^2",
            f"({x}+{a})({x}-{b})",
            f"{a}{x}+{b}{y}-{c}",
            f"{x}^2{y}+{a}{x}",
        )
    )


def _product_of_letters(draw: random.Random) -> str:
    x, y, z = draw.sample(LETTERS, 3)
    return draw.choice((f"{x}{y}-{z}", rf"\frac{{{x}}}{{{y}}}-{z}", f"{x}+{y}-{z}", rf"\frac12{x}{y}^2", f"3{x}{y}{z}"))


def _root_or_logarithm(draw: random.Random) -> str:
    x, (a, b) = draw.choice(LETTERS), _numbers(draw, 2, 3, 20)
    return draw.choice(
        (rf"\sqrt{{{x}^2+{a}}}", rf"{a}\ln {x}+{b}", rf"\sin {a}{x}-{b}", f"{a}^{{{x}+{b}}}", rf"|{x}-{a}|+{b}")
    )


def _equation(draw: random.Random) -> str:
    (x, y), (a, b, c) = draw.sample(LETTERS, 2), _numbers(draw, 3)
    return draw.choice((f"{y}={a}{x}+{b}", f"{a}{x}-{b}{y}={c}", f"{x}={a}", f"({x}-{a})^2+({y}-{b})^2={c}"))


def _tuple(draw: random.Random) -> str:
    a, b, c = _numbers(draw, 3)
    return draw.choice((f"({a},{b})", f"(-{a},{b},{c})", rf"\left({a},\frac{{{b}}}{{{c}}}\right)"))


def _interval(draw: random.Random) -> str:
    a, b = sorted(_numbers(draw, 2))
    return draw.choice((f"[{a},{b})", f"({a},{b}]", rf"(-\infty,{a}]\cup({b},\infty)", f"({a},{b})", rf"[{a},\infty)"))


def _inequality(draw: random.Random) -> str:
    x, (a, b) = draw.choice(LETTERS), sorted(_numbers(draw, 2))
    return draw.choice((rf"{x}\ge {a}", f"{a}<{x}<{b}", rf"{x}<{a}"))


def _list(draw: random.Random) -> str:
    a, b, c = _numbers(draw, 3)
    return draw.choice((f"{a}, {b}, -{c}", rf"\{{{a}, {b}\}}", f"({a},{b}), ({b},{c})"))


def _matrix(draw: random.Random) -> str:
    a, b, c, d = _numbers(draw, 4)
    return rf"\begin{{pmatrix}}{a}&{b}\\{c}&-{d}\end{{pmatrix}}"


def _complex(draw: random.Random) -> str:
    a, b = _numbers(draw, 2)
    return f"{a}-{b}i"


def _power(draw: random.Random) -> str:
    a, b, c = _numbers(draw, 3, 3, 40)
    return draw.choice((f"{a}^{{{b}}}+{c}", rf"\frac{{{c}}}{{{a}^{{{b}}}}}"))


FORMS: tuple[Callable[[random.Random], str], ...] = (
    *(_integer, _decimal, _fraction, _surd, _multiple_of_pi, _polynomial, _product_of_letters, _root_or_logarithm),
    *(_equation, _tuple, _interval, _inequality, _list, _matrix, _complex, _power),
)


def make_gold(draw: random.Random) -> str:
    """One answer of a random form."""
    return draw.choice(FORMS)(draw)


def mistakes(gold: str, draw: random.Random) -> Iterator[tuple[str, str]]:
    """What was changed, and the wrong answer: a digit, a sign, an operator, a letter, its case, a bracket."""
    yield from _changed(gold, "digit", r"\d", lambda digit: draw.choice([d for d in "123456789" if d != digit]), draw)
    yield from _changed(gold, "sign", r"(?<![\d}\w)])-(?=\d|\\frac)", lambda _: "", draw)
    yield from _changed(gold, "operator", r"(?<=[\w})])[+-](?=[\w\\])", lambda sign: "-" if sign == "+" else "+", draw)
    yield from _changed(gold, "relation", r"\\ge |<|\\le ", lambda sign: "<" if "ge" in sign else r"\ge ", draw)
    yield from _changed(gold, "letter", _CASED.pattern, lambda letter: "o" if letter != "o" else "d", draw)
    yield from _changed(gold, "case", _CASED.pattern, str.swapcase, draw)
    if re.match(r"[\[(][^()]*,.*[\])]$", gold):
        yield "bracket", ("[" if gold[0] == "(" else "(") + gold[1:]
        yield "bracket", gold[:-1] + ("]" if gold[-1] == ")" else ")")
    if not re.match(r"-|.*[=<,;&]|.*\\[gl]e |.*\\infty", gold):
        yield "sign", f"-({gold})"
        yield "operator", f"{gold}+1"
        yield "letter", f"{gold}\\cdot o"


def _changed(
    gold: str, what: str, pattern: str, change: Callable[[str], str], draw: random.Random
) -> Iterator[tuple[str, str]]:
    """One place that the pattern finds, changed."""
    places = list(re.finditer(pattern, gold))
    if places:
        place = draw.choice(places)
        yield what, gold[: place.start()] + change(place[0]) + gold[place.end() :]


def same_again(gold: str) -> Iterator[str]:
    """The same answer in other layouts."""
    yield gold
    yield f" {gold} "
    yield f"{gold}."
    yield f"${gold}$"
    yield f"**{gold}**"
    yield gold.replace("+", " + ").replace("=", " = ").replace(",", ", ").replace("<", " < ")
    yield gold.replace(r"\frac{", r"\dfrac{")
    yield gold.replace(r"\frac{", r"\tfrac{")
    if r"\left" not in gold and r"\{" not in gold and "begin" not in gold:
        yield gold.replace("(", r"\left(").replace(")", r"\right)").replace("[", r"\left[").replace("]", r"\right]")
