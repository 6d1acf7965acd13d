r"""Reads sums, products, powers and functions: strictly, by recursive descent.

One idea: what a careful reader would find ambiguous or malformed raises, and is then compared by its spelling alone.
A number behind a number, ``x 2`` or ``\sqrt13 5``, is no product.

Conventions: ``1/2x`` is (1/2)x, ``1/xy`` is 1/(xy); ``\sin 2x\cos x`` is a product of two; f and g are functions, all
other letters factors; e and i are the constants.
"""

from __future__ import annotations

import re
from fractions import Fraction

from pipeline_lib.grading.formulas.commands import (
    ACCENTS,
    DIVIDED_BY,
    ENDS,
    FENCES,
    FUNCTIONS,
    GREEK,
    INVERSES,
    MANY,
    NO_FACTORS,
    OPAQUE,
    RELATIONS,
    TIMES,
    UNSUPPORTED,
    WORDS,
)
from pipeline_lib.grading.formulas.cursor import Cursor
from pipeline_lib.grading.formulas.nodes import Node, UnreadableError, UnsupportedError, number, times, with_sign

MAX_DEPTH = 60


class ExpressionReader(Cursor):
    """A method for each level of precedence; public is the lowest, `sum`."""

    # --- sums, products, powers ---

    def sum(self) -> Node:
        terms = [self._signed_term()]
        while self._next.kind in ("sign", "command") and self._next.text in ("+", "-", r"\pm", r"\mp"):
            terms.append(self._signed_term())
        return terms[0] if len(terms) == 1 else Node("sum", parts=tuple(terms))

    def _signed_term(self) -> Node:
        signs = []
        while self._next.text in ("+", "-", r"\pm", r"\mp") and self._next.kind != "text":
            signs.append(self._take().text)
        if len(signs) > 2:
            raise UnreadableError("too many signs")
        term = self._product()
        for sign in reversed(signs):
            term = with_sign(sign, term)
        return term

    def _product(self) -> Node:
        result = self._power()
        while True:
            if self._next.kind in ("sign", "command") and self._next.text in TIMES:
                self._take()
                result = times(result, self._signed_factor())
            elif self._next.kind in ("sign", "command") and self._next.text in DIVIDED_BY:
                self._take()
                result = self._quotient(result)
            elif self._starts_factor():
                result = times(result, self._power())
            else:
                return result

    def _quotient(self, dividend: Node) -> Node:
        divisor = self._signed_factor()
        if divisor.kind != "number":  # 1/xy is 1/(xy), 1/2x is x/2
            while self._starts_factor():
                divisor = times(divisor, self._power())
        return Node("quotient", parts=(dividend, divisor))

    def _signed_factor(self) -> Node:
        if self._take_if("-"):
            return with_sign("-", self._power())
        return self._power()

    def _starts_factor(self) -> bool:
        kind, text = self._next
        if kind == "number":
            return False  # a number behind a factor is no product
        if kind in ("letter", "word"):
            return True
        if text == "|":
            return self._open_bars == 0
        if kind == "command":
            is_end = text in ENDS or text.startswith(r"\end{")
            return not is_end and text not in RELATIONS and text not in TIMES and text not in NO_FACTORS
        return kind == "sign" and text in ("(", "[", "{")

    def _power(self) -> Node:
        base = self._postfix(self._atom())
        if not self._take_if("^"):
            return base
        exponent = self._exponent()
        if self._next.text == "^":
            raise UnreadableError("a second exponent")
        return self._postfix(Node("power", parts=(base, exponent)))

    def _exponent(self) -> Node:
        if self._take_if("-"):
            return with_sign("-", self._argument())
        return self._argument()

    def _postfix(self, node: Node) -> Node:
        while self._next.kind in ("sign", "command"):
            if self._take_if("!"):
                if self._next.text == "!":
                    raise UnreadableError("a double factorial")
                node = Node("function", "factorial", (node,))
            elif self._take_if("%"):
                node = Node("percent", parts=(node,))
            elif self._take_if(r"\degree"):
                node = Node("degrees", parts=(node,)) if self._in_function else node
            else:
                return node
        return node

    # --- atoms ---

    def _atom(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        kind, text = self._next
        if kind == "number":
            atom = self._number()
        elif kind == "letter":
            atom = self._letter()
        elif kind == "word":
            self._take()
            atom = self._function(WORDS.get(text, text))
        elif kind == "command":
            atom = self._command(text)
        elif kind == "sign" and text in ("(", "[", "{", "|"):
            atom = self._bracket()
        else:
            raise UnreadableError(f"no value at {text or 'the end'}")
        self._depth -= 1
        return atom

    def _number(self) -> Node:
        digits = self._take().text
        if self._next.text == "_" and self._next.kind == "sign":
            return self._numeral(digits)
        value = Fraction(digits)
        if self._next.kind == "number":  # 1 1/2
            numerator, sign, denominator = self._tokens[self._place : self._place + 3]
            is_mixed = digits.isdigit() and numerator.text.isdigit() and denominator.text.isdigit()
            if not is_mixed or sign.text != "/":
                raise UnreadableError("a number behind a number")
            self._place += 3
            return self._mixed(value, numerator.text, denominator.text)
        if digits.isdigit() and self._next.text == r"\frac":
            numerator, denominator = self._tokens[self._place + 1 : self._place + 3]
            if numerator.text.isdigit() and denominator.text.isdigit():
                self._place += 3
                return self._mixed(value, numerator.text, denominator.text)
        decimals = len(digits.partition(".")[2])
        return Node("decimal", value, (number(decimals),)) if decimals else number(value)

    def _mixed(self, whole: Fraction, numerator: str, denominator: str) -> Node:
        if int(denominator) == 0:
            raise UnreadableError("a division by 0")
        part = Fraction(int(numerator), int(denominator))
        return number(whole + part if self._mixed_numbers else whole * part)

    def _numeral(self, digits: str) -> Node:
        """``1011_2``."""
        self._take("_")
        base = self._take()
        if base.kind != "number" or not base.text.isdigit() or not 2 <= int(base.text) <= 36:
            raise UnreadableError("a number with a subscript")
        try:
            return number(int(digits, int(base.text)))
        except ValueError:
            raise UnreadableError("a digit that the base does not have") from None

    def _letter(self) -> Node:
        name = self._take().text
        if name in ("e", "i") and self._next.text not in ("_", "'"):
            return Node("constant", name)
        name = self._decorated(name)
        is_function = name[0] in "fg" and (len(name) == 1 or name[1] in "_'")
        return self._applied(name) if is_function else Node("symbol", name)

    def _applied(self, name: str) -> Node:
        """``f(x)``, ``f^{-1}(x)``: a value that depends on its arguments only; f alone is a letter."""
        start = self._place
        if self._take_if("^"):
            name += "^" + self._spelt_group()
        if self._next != ("sign", "("):
            self._place = start
            return Node("symbol", name.partition("^")[0])
        return Node("function", f"apply {name}", self._arguments())

    def _decorated(self, name: str) -> str:
        """The name with its subscript and primes."""
        while self._next.kind == "sign" and self._next.text in ("_", "'"):
            name += self._take().text
            name += self._spelt_group() if name.endswith("_") else ""
        return name

    def _spelt_group(self) -> str:
        """The spelling of the next token or braced group."""
        if not self._take_if("{"):
            if self._next.kind == "end":
                raise UnreadableError("an empty subscript")
            return self._take().text
        depth, spelt = 1, []
        while depth:
            token = self._take()
            if token.kind == "end":
                raise UnreadableError("an open brace")
            depth += (token == ("sign", "{")) - (token == ("sign", "}"))
            spelt.append(token.text)
        return " ".join(spelt[:-1])

    def _command(self, name: str) -> Node:
        if name in OPAQUE:
            return self._opaque()
        if name in UNSUPPORTED:
            raise UnsupportedError(name)
        self._take()
        if name in (r"\frac", r"\sqrt", r"\binom"):
            return self._with_arguments(name)
        if name in FUNCTIONS:
            return self._function(FUNCTIONS[name])
        if name in (r"\pi", r"\infty"):
            return Node("constant", {"\\pi": "pi", "\\infty": "inf"}[name])
        if name in GREEK:
            return Node("symbol", self._decorated(name))
        if name in ACCENTS:
            return self._accented(name)
        if name in FENCES:
            end, function = FENCES[name]
            inside = self.sum()
            self._take(end)
            return Node("function", function, (inside,))
        return self._structure(name)

    def _with_arguments(self, name: str) -> Node:
        if name == r"\frac":
            return self._fraction()
        if name == r"\sqrt":
            return self._root()
        return Node("function", "binomial", (self._argument(), self._argument()))

    def _structure(self, name: str) -> Node:
        raise UnreadableError(f"unknown command {name}")

    def _accented(self, accent: str) -> Node:
        name = f"{accent} {self._spelt_group()}"
        while accent in (r"\angle", r"\triangle") and self._next.kind == "letter":
            name += self._take().text
        if name == r"\mathbb R":
            return Node("constant", "reals")
        return Node("symbol", self._decorated(name))

    def _opaque(self) -> Node:
        """A sum, integral or limit with all that follows it: compared by its spelling."""
        spelt: list[str] = []
        depth = 0
        while depth or (self._next.text not in ENDS and self._next.text not in RELATIONS):
            token = self._take()
            if token.kind == "end":
                raise UnreadableError("an open brace")
            depth += (token.text in ("{", "(", "[")) - (token.text in ("}", ")", "]"))
            spelt.append(token.text)
        return Node("opaque", " ".join(spelt))

    def _fraction(self) -> Node:
        start, ends = self._place, [token.text for token in self._tokens[self._place : self._place + 2]]
        if "d" in (ends[0], ends[0].replace("{", ends[1])):  # dy/dx is no quotient of products
            top, bottom = self._spelt_group(), self._spelt_group()
            if _DIFFERENTIAL.fullmatch(bottom):
                return Node("opaque", f"{top} / {bottom}")
            self._place = start
        return Node("quotient", parts=(self._argument(), self._argument()))

    def _root(self) -> Node:
        if self._take_if("["):
            degree = self.sum()
            self._take("]")
            return Node("function", "root", (self._argument(), degree))
        if self._next == ("sign", "("):  # \sqrt(2)
            return Node("function", "sqrt", (self._bracket(),))
        return Node("function", "sqrt", (self._argument(),))

    def _argument(self) -> Node:
        r"""What a command takes: a braced group, or one token; ``\frac\pi2`` and ``e^\pi`` included."""
        if self._next == ("sign", "{"):
            return self._bracket()
        if self._next.kind == "number":
            return number(Fraction(self._take().text))
        if self._next.kind in ("letter", "command"):
            return self._atom()
        if self._next == ("sign", "("):
            return self._bracket()
        raise UnreadableError(f"no argument at {self._next.text or 'the end'}")

    # --- functions ---

    def _function(self, name: str) -> Node:
        base: tuple[Node, ...] = ()
        exponent: Node | None = None
        while self._next.kind == "sign" and self._next.text in ("_", "^"):
            if self._take().text == "_":
                base = (self._argument(),)
            else:
                exponent = self._exponent()
        if name in MANY:
            if base:
                raise UnsupportedError(name)
            return Node("function", name, self._arguments())
        if base and name != "log":
            raise UnreadableError(f"{name} with a subscript")
        if exponent == _MINUS_ONE:
            if name not in INVERSES:
                raise UnreadableError(f"the inverse of {name}")
            name, exponent = INVERSES[name], None
        outer, self._in_function = self._in_function, True
        argument = self._function_argument(name)
        self._in_function = outer
        if name == "root":
            return Node("function", name, (argument, number(3)))
        applied = Node("function", name, (argument, *base))
        return applied if exponent is None else Node("power", parts=(applied, exponent))

    def _function_argument(self, name: str) -> Node:
        if self._next in (("sign", "("), ("sign", "["), ("sign", "|")) or name == "sqrt":
            return self._argument() if self._next.text != "|" and self._next.text != "[" else self._bracket()
        if self._take_if("-"):
            return with_sign("-", self._function_argument(name))
        result = self._postfix_power()
        while self._continues_argument():
            result = times(result, self._postfix_power())
        return result

    def _postfix_power(self) -> Node:
        return self._power()

    def _continues_argument(self) -> bool:
        kind, text = self._next
        is_function = kind == "word" or text in FUNCTIONS
        return self._starts_factor() and not is_function and text not in ("(", "[", "|")

    def _arguments(self) -> tuple[Node, ...]:
        """``(a, b)``."""
        self._take("(")
        parts = [self.sum()]
        while self._take_if(","):
            parts.append(self.sum())
        self._take(")")
        return tuple(parts)

    # --- brackets ---

    def _bracket(self) -> Node:
        opening = self._take().text
        if opening == "|":
            self._open_bars += 1
            inside = self.sum()
            self._take("|")
            self._open_bars -= 1
            return Node("function", "abs", (inside,))
        bars, self._open_bars = self._open_bars, 0
        if opening == "{":
            inside = self.sum()
            self._take("}")
        else:
            inside = self._inside_brackets(opening)
        self._open_bars = bars
        return inside

    def _inside_brackets(self, opening: str) -> Node:
        inside = self.sum()
        self._take({"(": ")", "[": "]"}[opening])
        return inside


_DIFFERENTIAL = re.compile(r"d \S+(?: \^ \d)?")
_MINUS_ONE = Node("negative", parts=(number(1),))
