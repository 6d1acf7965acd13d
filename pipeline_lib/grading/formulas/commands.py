"""What the reader knows by name: letters, accents, functions, and what ends or begins a factor."""

from __future__ import annotations

import re

GREEK = frozenset(
    rf"\{name}"
    for name in re.findall(
        r"\w+",
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma "
        "tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar",
    )
)
ACCENTS = frozenset(
    rf"\{name}"
    for name in re.findall(
        r"\w+", "vec hat bar overline tilde dot mathbb mathcal widehat overrightarrow angle triangle"
    )
)
FUNCTIONS = {
    rf"\{name}": name for name in re.findall(r"\w+", "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan exp")
} | {
    r"\ln": "ln",
    r"\log": "log",
    r"\lg": "lg",
    r"\max": "max",
    r"\min": "min",
    r"\gcd": "gcd",
}
WORDS = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "cbrt": "root", "ceil": "ceiling"}
INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
OPAQUE = frozenset(rf"\{name}" for name in re.findall(r"\w+", "sum prod int iint oint lim limsup liminf partial"))
UNSUPPORTED = frozenset(rf"\{name}" for name in re.findall(r"\w+", "bmod mod neg det Gamma zeta"))
MANY = frozenset(("max", "min", "gcd", "lcm"))
FENCES = {r"\lfloor": (r"\rfloor", "floor"), r"\lceil": (r"\rceil", "ceiling")}
TIMES = frozenset((r"\cdot", r"\times", "*", r"\ast"))
DIVIDED_BY = frozenset(("/", r"\div"))
ENDS = frozenset(("", ")", "]", "}", ",", ";", r"\}", r"\rangle", r"\rfloor", r"\rceil", "&", r"\\", r"\lor", r"\land"))
RELATIONS = frozenset(("=", "<", ">", ":", r"\le", r"\ge", r"\ne", r"\approx", r"\in", r"\notin", r"\equiv", r"\sim"))
NO_FACTORS = frozenset(
    ("+", "-", r"\pm", r"\mp", r"\div", r"\cup", r"\cap", r"\setminus", r"\%", r"\degree", r"\mid", r"\pmod", r"\ldots")
)
