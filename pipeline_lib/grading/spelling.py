r"""One spelling for the same answer: Unicode, LaTeX's many commands and plain notation become one small LaTeX.

One idea: nothing that carries meaning goes. Units, case, signs, brackets and the space between two numbers stay; what
goes is layout: sizes, styles, thin spaces, delimiters, idle braces, a full stop.
"""

from __future__ import annotations

import re

MAX_CHARS = 20_000
"""Longer texts are no answers, and only stripped."""

_SIMPLE = re.compile(r"-?\d[\d,]*(?:\.\d+)?", re.ASCII)
_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
        re.findall(
            r"\w+",
            "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi "
            "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega",
        ),
        strict=True,
    )
)
_NAMED = _GREEK | {
    "π": "pi",
    "ϕ": "phi",
    "𝜋": "pi",
    "∞": "infty",
    "≤": "le",
    "⩽": "le",
    "≥": "ge",
    "⩾": "ge",
    "≠": "ne",
    "≈": "approx",
    "≡": "equiv",
    "∈": "in",
    "∉": "notin",
    "∪": "cup",
    "∩": "cap",
    "∖": "setminus",
    "∅": "emptyset",
    "⌀": "emptyset",
    "±": "pm",
    "∓": "mp",
    "×": "times",
    "÷": "div",
    "·": "cdot",
    "⋅": "cdot",
    "∙": "cdot",
    "∘": "circ",
    "∠": "angle",
    "△": "triangle",
    "…": "ldots",
    "⋯": "ldots",
    "⌊": "lfloor",
    "⌋": "rfloor",
    "⌈": "lceil",
    "⌉": "rceil",
    "⟨": "langle",
    "⟩": "rangle",
    "∨": "lor",
    "∧": "land",
    "∑": "sum",
    "∫": "int",
    "ℓ": "ell",
}
_DEGREES = "°˚º"
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad\u200e\u200f\u202a\u202c\u2061\u2062\u2063"
_CHARACTERS = (
    {ord(char): f"\\{name} " for char, name in _NAMED.items()}
    | {ord(char): r"\degree " for char in _DEGREES}
    | dict.fromkeys(map(ord, _INVISIBLE))
    | dict.fromkeys(map(ord, "−–‐‑‒﹣➖"), "-")
    | dict.fromkeys(map(ord, "\u00a0\u2009\u202f\u2002\u2003\u2007\u2008\u200a\u205f\u3000"), " ")
    | dict.fromkeys(map(ord, "⁄∕"), "/")
    | dict.fromkeys(map(ord, "ʹ′’‘"), "'")
    | {ord(char): f"\\mathbb{{{letter}}}" for char, letter in zip("ℝℤℚℂℕ", "RZQCN", strict=True)}
    | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full width
    | {ord("，"): ",", ord("。"): ".", ord("、"): ",", ord("∣"): "|", ord("∗"): "*", ord("∶"): ":"}
)
_VULGAR = {
    "½": (1, 2),
    "⅓": (1, 3),
    "⅔": (2, 3),
    "¼": (1, 4),
    "¾": (3, 4),
    "⅕": (1, 5),
    "⅖": (2, 5),
    "⅗": (3, 5),
    "⅘": (4, 5),
    "⅙": (1, 6),
    "⅚": (5, 6),
    "⅐": (1, 7),
    "⅛": (1, 8),
    "⅜": (3, 8),
    "⅝": (5, 8),
    "⅞": (7, 8),
    "⅑": (1, 9),
    "⅒": (1, 10),
}
_CHARACTERS |= {ord(char): rf"\frac{{{top}}}{{{bottom}}}" for char, (top, bottom) in _VULGAR.items()}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ", "0123456789+-nx")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₙₓ]+")
_UNICODE_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]))")
_CUBE_ROOT = re.compile(r"∛\s*(?:\(([^()]*)\)|(\d+|[A-Za-z]))")

_KNOWN = r"(?:[dtc]?frac|sqrt|pi|text\w*|math\w+|left|right|begin|end|cdot|times|infty|boxed|leq?|geq?|p?m|circ|cup|in)"
_DOUBLED = re.compile(rf"(?<!\\)\\\\(?={_KNOWN}(?![a-z]))")
_SINGLE_COMMAND = re.compile(r"(?<!\\)\\[A-Za-z]")
_REPEATING = re.compile(r"(\d{0,20})\.(\d{0,20})\\(?:overline|bar|dot)\s*(?:\{\s*(\d{1,20})\s*\}|(\d))")
_CHOOSE = re.compile(r"\{([^{}]*)\\(choose|over)(?![A-Za-z])([^{}]*)\}")
_FUNCTION = r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|lg|exp|max|min|gcd|lcm"
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|biggl?|biggr|Biggl?|Biggr|middle)\s*\.", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?|middle)(?![A-Za-z])", ""),
        (r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|rm|bf|it|strut|mathstrut)(?![A-Za-z])\s*", ""),
        (r"\\(?:boldsymbol|mathbf|bm|pmb|mathit|mathsf|mathtt|mathnormal|ensuremath)(?![A-Za-z])", ""),
        (r"\\(?:hspace|vspace|phantom|hphantom|label|tag)\*?\s*\{[^{}]*\}", " "),
        (r"\\(?:textbf|textit|textrm|textsf|texttt|textnormal|emph|underline|mbox|hbox)(?![A-Za-z])", r"\\text"),
        (r"\\(?:operatorname|mathrm|text)\*?\s*\{\s*(" + _FUNCTION + r")\s*\}", r"\\\1 "),
        (r"\\(?:operatorname|mathrm|text)\s*\{\s*([eid])\s*\}", r"\1"),  # the constants, set upright
        (r"\\(?:mathrm|operatorname)(?![A-Za-z])", r"\\text"),
        (r"\\\\\s*\[\s*-?[\d.]{1,9}\s*(?:pt|em|ex|mm|cm|in)\s*\]", r"\\\\"),
        (r",(?<!\\,)\s*\\[!,;:]\s*(?=\d{3})", ","),  # 11,\! 111
        (r"(?<=\d)\\[!,;:]\s*(?=\d{3}(?!\d))", ""),  # 10\,000
        (r"(?<!\\)\\[!]", ""),
        (r"(?<!\\)\\[,;:>]|\\(?:thinspace|quad|qquad|enspace|space)(?![A-Za-z])|(?<!\\)\\ |~|\\nobreakspace", " "),
        (r"\{,\}", ","),  # 1{,}000
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"(?<!\\)\\([$%])", r"\1"),
        (r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))", r"\\degree "),
        (r"\\textdegree|\\degrees?(?![A-Za-z])\s*", r"\\degree "),
        (r"\s*\\?%|\s*(?:\\text\s*\{\s*percent\s*\}|\bpercent\b)", "%"),
        (r"\\(?:leqslant|leq|leqq)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geqslant|geq|geqq)(?![A-Za-z])", r"\\ge "),
        (r"\\(?:neq|not\s*=)(?![A-Za-z])|(?<=\s)!=|\\not=", r"\\ne "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:approxeq|simeq|thickapprox)(?![A-Za-z])", r"\\approx "),
        (r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])", "|"),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\(?:varnothing)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:dotsc|dotsb|dots|cdots|ldots)(?![A-Za-z])|\.\.\.", r"\\ldots "),
        (r"\\(?:vee)(?![A-Za-z])", r"\\lor "),
        (r"\\(?:wedge)(?![A-Za-z])", r"\\land "),
        (r"\\(?:backslash)(?![A-Za-z])", r"\\setminus "),
        (r"\\(?:cdotp|ast|bullet)(?![A-Za-z])", r"\\cdot "),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![A-Za-z]))", "'"),
        (r"\\measuredangle", r"\\angle "),
        (r"\(\s*(?:\\text\s*\{\s*mod\s*\}|\\[bp]?mod(?![A-Za-z])|\bmod\b)\s*([^()]*)\)", r"\\pmod{\1}"),
        (r"(?<=[\w)\]}])\s*\*\*\s*(?=[\w({\\-])", "^"),  # x**2
        (r"(\d)\s*[xX]\s*(?=10\s*\^)", r"\1\\times "),  # 1.5 x 10^3
        (r"(?<!\\)\{\s*\}", ""),
    )
)
_WRAPPERS = re.compile(
    r"""
      \$\$(.*)\$\$
    | \$((?:[^$\\]|\\.)*)\$
    | \\\((.*)\\\)
    | \\\[(.*)\\\]
    | \*\*(.*)\*\*   # bold
    | \{([^{}]*)\}
    | \\f?box(?:ed)?\s*\{([^{}]*)\}
    | `([^`]*)`
    """,
    re.VERBOSE | re.DOTALL,
)
_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*)\}")


def normalise_answer(text: str) -> str:
    r"""Writes the same answer in one way: no spacing commands, no delimiters around it, no full stop.

    Example: ``normalise_answer(r"$\dfrac{1}{2}$.") == r"\frac{1}{2}"``
    """
    text = text.strip()
    if _SIMPLE.fullmatch(text):
        return text
    if len(text) > MAX_CHARS:
        return without_stop(text)
    text = " ".join(text.split())
    if not text.isascii():
        text = without_unicode(text)
    if "\\" in text:
        text = _with_single_backslashes(text)
        text = _CHOOSE.sub(_as_command, text) if "choose" in text or "over" in text else text
        text = _REPEATING.sub(_as_fraction, text) if "over" in text or "bar" in text or "dot" in text else text
    text = unwrap(text)  # before `\\$` loses its backslash
    if "percent" in text or not text.replace(" ", "").isalnum():
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
    return unwrap(text)


def without_unicode(text: str) -> str:
    """Mathematical characters as LaTeX, full-width ones as usual ones; what is invisible goes."""
    text = _UNICODE_ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2] or m[3] or ''}}}", text)
    text = _CUBE_ROOT.sub(lambda m: rf"\sqrt[3]{{{m[1] or m[2] or ''}}}", text)
    text = _RAISED_RUN.sub(lambda m: "^" + _group(m[0].translate(_RAISED)), text)
    text = _LOWERED_RUN.sub(lambda m: "_" + _group(m[0].translate(_LOWERED)), text)
    return text.translate(_CHARACTERS)


def _group(text: str) -> str:
    return text if len(text) == 1 else f"{{{text}}}"


def without_invisible(text: str) -> str:
    """A whole text without zero-width characters, its full-width characters as usual ones."""
    if text.isascii():
        return text
    return text.translate(_READABLE)


_READABLE = dict.fromkeys(map(ord, _INVISIBLE)) | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}


def unwrap(text: str, *, is_text: bool = False) -> str:
    r"""Without the delimiters around it and without a full stop.

    Args:
        text: an answer.
        is_text: whether ``\text{...}`` around the whole goes, too.
    """
    text = without_stop(text)
    while (match := _WRAPPERS.fullmatch(text) or (_TEXT.fullmatch(text) if is_text else None)) is not None:
        text = without_stop(next(str(group) for group in match.groups() if group is not None))
    return text


def without_stop(text: str) -> str:
    r"""Without the punctuation at its end; ``\,`` and ``0.\overline{3}`` stay whole."""
    text = text.strip()
    short = text.rstrip(".,;: ")
    return text[: len(short) + 1] if short.endswith("\\") and short != text else short


def _with_single_backslashes(text: str) -> str:
    """As before it was written with every backslash doubled, if it was."""
    if _DOUBLED.search(text) and not _SINGLE_COMMAND.search(text):
        return text.replace("\\\\", "\\")
    return text


def _as_command(match: re.Match[str]) -> str:
    return rf"\{'binom' if match[2] == 'choose' else 'frac'}{{{match[1].strip()}}}{{{match[3].strip()}}}"


def _as_fraction(match: re.Match[str]) -> str:
    r"""``0.1\overline{6}`` as ``\frac{15}{90}``."""
    whole, once, again = match[1] or "0", match[2], match[3] or match[4]
    top = int(whole + once + again) - int(whole + once)
    return rf"\frac{{{top}}}{{{'9' * len(again)}{'0' * len(once)}}}"
