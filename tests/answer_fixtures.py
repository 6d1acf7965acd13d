r"""Answers as instruction-tuned models write them, each with its steps: 41 written by hand, the rest put together.

By hand: ``golden/instruct_answers.txt``, a line ``§§ name`` before each answer (``crlf`` behind the name for Windows'
line ends) and a line ``§`` between its steps; a blank line belongs to the step before it.

Put together: a step is a block of one of the kinds below, drawn with a seed, so an answer's steps are the blocks that
it was joined from, whatever the code under test says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline_lib.policy.codec import TokenizerCodec

HANDWRITTEN = Path(__file__).parent / "golden" / "instruct_answers.txt"
NUM_ANSWERS = 300
Block = Callable[[Random], str]

NAMES = ("Ann", "Bilal", "Chloé", "Dmitri", "Esperanza", "小明", "Noor", "Søren")
THINGS = ("clips", "apples", "stickers", "eggs", "tickets", "pens", "bücher", "мячей", "tortillas", "croissants")
OPENINGS = ("First", "Next", "Then", "After that", "Now", "So", "Thus", "Finally", "Also", "Wait", "Hmm", "OK")
TASKS = ("Find the total", "Compute the area", "Set up the equation", "Simplify", "Check the result", "Substitute back")
EMOJI = ("🎯", "✅", "➡️", "🎉", "👩‍🏫", "🧮", "📦")
LEADS = ("So we get:", "Thus, we have:", "Solving for $x$:", "which means:", "Therefore,", "**So:**")
SPACINGS = (r"\\", r"\\[4pt]", r"\\[0.5em]", r"\\ ", r"\\[1ex]")


def handwritten() -> dict[str, list[str]]:
    """Steps by the answer's name."""
    answers: dict[str, list[str]] = {}
    for part in HANDWRITTEN.read_text(encoding="utf-8").split("§§ ")[1:]:
        header, _, body = part.partition("\n")
        name, _, line_ends = header.partition(" ")
        steps = body.removesuffix("\n").split("§\n")
        answers[name] = [step.replace("\n", "\r\n") for step in steps] if line_ends == "crlf" else steps
    return answers


def generated(count: int) -> dict[str, list[str]]:
    """Steps by the answer's name; the same ones whenever it is called."""
    styles = list(STYLES)
    return {f"{styles[i % len(styles)]}-{i}": answer(styles[i % len(styles)], Random(i)) for i in range(count)}


def all_answers() -> dict[str, list[str]]:
    """The 300 answers of the corpus."""
    written = handwritten()
    return written | generated(NUM_ANSWERS - len(written))


def answer(style: str, draw: Random) -> list[str]:
    """The steps of one answer of a style."""
    opening, kinds, ending = STYLES[style]
    blocks = [kind(draw) for kind in opening]
    blocks += [draw.choice(kinds)(draw) for _ in range(draw.randint(3, 12))]
    blocks += [kind(draw) for kind in ending]
    steps = [block + _gap(draw) for block in blocks[:-1]] + [blocks[-1] + draw.choice(["", "", "\n"])]
    if draw.random() < 0.1:
        return [step.replace("\n", "\r\n") for step in steps]
    return steps


def _gap(draw: Random) -> str:
    """What stands between two steps; a table and what follows are always a blank line apart."""
    return draw.choice(["\n\n", "\n\n", "\n\n", "\n\n\n", "  \n\n"])


def sentence(draw: Random) -> str:
    name, thing, a, b = draw.choice(NAMES), draw.choice(THINGS), draw.randint(2, 90), draw.randint(2, 90)
    return draw.choice(
        [
            f"{draw.choice(OPENINGS)}, {name} sold {a} {thing} and then {b} more.",
            f"{name} has {a} + {b} = {a + b} {thing} altogether.",
            f"Each box holds {a} {thing}, so {b} boxes hold {a} × {b} = {a * b}.",
            f"The price falls from ${a * b:,}.50 to ${a}.25 — that is {b} % less…",
            rf"With \( x = {a} \) we have $\frac{{x}}{{{b}}} = {a / b:.2f}$.",
            rf"Let $n_{{{a}}}$ be the number of {thing}; then $n_{{{a}}} \ge {b}$.",
            f"{draw.choice(EMOJI)} That makes {a * b} {thing} {draw.choice(EMOJI)}",
            f"|x - {a}| = {b} holds for x = {a + b}.",
            f"“{thing.title()}” cost €{a},{b:02d} (see above)!",
            f"Is {a} > {b}? {a > b}.",
            f"e.g. {name}'s share is {a}/{b} of all {thing} [1]",
            rf"The entry reads {a} \\[4pt] {b}, on two lines.",
            f"*{draw.choice(OPENINGS)}*, `{thing[:3]} = {a}` and `{b}` differ by {abs(a - b)}.",
            f"El número de {thing} es {a}·{b}={a * b}",
            f"所以{name}一共有{a}个。",
        ]
    )


def item(mark: str, draw: Random) -> str:
    return mark.format(n=draw.randint(1, 12)) + " " + sentence(draw)


def between(draw: Random) -> str:
    """What stands between a label and what it leads to."""
    return draw.choice(["\n", "\n\n", "\n\n"])


def heading(draw: Random) -> str:
    level, task, number = "#" * draw.randint(1, 4), draw.choice(TASKS), draw.randint(1, 9)
    title = draw.choice([f"Step {number}: {task}", task, f"{number}. {task}", f"{draw.choice(EMOJI)} {task}"])
    return f"{level} {title}{between(draw)}{content(draw)}"


def label(draw: Random) -> str:
    task, number = draw.choice(TASKS), draw.randint(1, 9)
    names = [
        f"**Step {number}:**",
        f"**Step {number}: {task}**",
        f"**{task}**",
        f"{number}. **{task}**:",
        f"- **{task}:**",
        f"Step {number}:",
        f"**{task}:**",
        f"__{task}__",
        f"Case {number}.",
    ]
    return draw.choice(names) + between(draw) + content(draw)


def rule(draw: Random) -> str:
    return draw.choice(["---", "***", "-----"]) + between(draw) + content(draw)


def lead(draw: Random) -> str:
    """A line that announces, and what it does."""
    return draw.choice(LEADS) + between(draw) + draw.choice([displayed, displayed, environment, sentence])(draw)


def content(draw: Random) -> str:
    return draw.choice([sentence, sentence, displayed, lead])(draw)


def displayed(draw: Random) -> str:
    a, b = draw.randint(2, 90), draw.randint(2, 90)
    rows = draw.choice(
        [
            [f"x = {a} + {b} = {a + b}"],
            [f"x = {a} +", f"{b} = {a + b}"],
            [f"{a}x + {b} = 0", rf"\implies x = -\frac{{{b}}}{{{a}}}."],
            [rf"\boxed{{{a}}}"],
            [rf"S = \sum_{{i=1}}^{{{a}}} i", rf"= {a * (a + 1) // 2}"],
            [environment(draw)],
        ]
    )
    opened, closed = draw.choice([("$$", "$$"), (r"\[", r"\]")])
    if draw.random() < 0.3 and len(rows) == 1 and "\n" not in rows[0]:
        return f"{opened} {rows[0]} {closed}"
    return "\n".join([opened, *rows, closed])


def environment(draw: Random) -> str:
    name = draw.choice(["align*", "aligned", "align", "cases", "pmatrix", "array", "gather", "split"])
    spacing = draw.choice(SPACINGS)
    rows = [f"x_{{{i}}} &= {draw.randint(1, 99)}" for i in range(draw.randint(2, 4))]
    body = f" {spacing}\n".join(rows)
    argument = "{rl}" if name == "array" else ""
    return rf"\begin{{{name}}}{argument}" + f"\n{body}\n" + rf"\end{{{name}}}"


def code(draw: Random) -> str:
    mark = draw.choice(["```", "```", "```", "````", "~~~"])
    language = draw.choice(["python", "", "text", "latex", "Python3"])
    body = draw.choice(
        [
            ["x = 3", "", "", "print(x)"],
            ["def f(n):", '    """Doubles:"""', "    return 2 * n", "", "# heading?", "f(2)"],
            ["$$ unclosed", "| a | b |", r"\[ x"],
            [r"\begin{align}", "x &= 2 \\\\"],
            ["{", '  "total": [1,', "  2]", "}"],
            ["1. one", "", "2. two:"],
        ]
    )
    introduction = draw.choice(["", "", "Here is the code:" + between(draw), "```python```, that is:\n"])
    return introduction + "\n".join([f"{mark}{language}", *body, mark])


def code_in_item(draw: Random) -> str:
    return f"{draw.randint(1, 9)}. Run this:\n   ```python\n   y = {draw.randint(1, 9)}\n\n   print(y)\n   ```"


def table(draw: Random) -> str:
    heads = draw.sample(["Item", "Price", "n", "$n^2$", "Total", "**Sum**"], draw.randint(2, 4))
    rows = [[str(draw.randint(1, 999)) for _ in heads] for _ in range(draw.randint(1, 6))]
    dash = draw.choice(["---", ":--", ":---:", "--------:", "-"])
    if draw.random() < 0.25:
        made = [" | ".join(row) for row in [heads, ["---"] * len(heads), *rows]]
    else:
        made = ["| " + " | ".join(row) + " |" for row in [heads, [dash] * len(heads), *rows]]
    introduction = draw.choice(["", "", "| is a bar:\n\n", "The values are:\n\n", "### Values\n\n"])
    return introduction + "\n".join(made)


def quotation(draw: Random) -> str:
    return draw.choice(
        [f"> {sentence(draw)}", f"> **Note:**\n> {sentence(draw)}", f"> Remember:\n>\n> {sentence(draw)}"]
    )


def thinks(draw: Random) -> str:
    return f"<think>\n{sentence(draw)}"


def thought(draw: Random) -> str:
    return f"</think>\n\n{content(draw)}"


def unclosed_code(draw: Random) -> str:
    return f"```{draw.choice(['python', '', 'text'])}\nx = {draw.randint(1, 9)}"


def unclosed_formula(draw: Random) -> str:
    return "\\[\nx = " + str(draw.randint(1, 99))


def result(draw: Random) -> str:
    number = draw.randint(1, 999)
    return draw.choice(
        [
            f"#### {number}",
            f"#### ${number:,}",
            rf"The answer is $\boxed{{{number}}}$.",
            f"**Final Answer:** {number}",
            f"### Final Answer\n\n$$\\boxed{{{number}}}$$",
            f"**Answer: {number}**",
            f"<answer>{number}</answer>",
            f"Answer: {number} 🎉",
        ]
    )


ITEMS = [partial(item, mark) for mark in ("{n}.", "{n})", "-", "*", "  -", "   +", "\t-", "{n}. **Note:**")]
STYLES: dict[str, tuple[list[Block], list[Block], list[Block]]] = {
    "plain": ([], [sentence], [result]),
    "headed": ([], [heading, sentence, rule], [result]),
    "labelled": ([sentence], [label, label, sentence, lead], [result]),
    "items": ([], ITEMS, [sentence, result]),
    "formulas": ([], [lead, displayed, environment, sentence], [result]),
    "code": ([sentence], [code, code_in_item, sentence], [result]),
    "tables": ([], [table, sentence, quotation], [sentence, result]),
    "thought": ([thinks], [sentence, sentence, displayed, *ITEMS], [thought, result]),
    "unclosed": ([sentence], [sentence, unclosed_formula], [unclosed_code, sentence, sentence, result]),
    "mixed": ([], [heading, label, lead, displayed, code, table, quotation, rule, *ITEMS], [result]),
}


def byte_level_tokenizer(texts: Sequence[str], size: int = 3000) -> Tokenizer:
    """A byte-level BPE, as Qwen's and Llama 3's: a rare character lies across tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator(texts, trainer)
    return made


def byte_fallback_tokenizer(texts: Sequence[str], size: int = 3000) -> Tokenizer:
    """A BPE over characters that drops the first space and writes rare ones as bytes, as Llama 2's and Mistral's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [line for text in texts for line in text.splitlines()]  # so line ends are bytes, too
    made.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, show_progress=False, limit_alphabet=120))
    learned = json.loads(made.to_str())["model"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(merge) for merge in learned["merges"]]
    made.model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def codec_of(tokenizer: Tokenizer) -> TokenizerCodec:
    """The tokenizer as engines use it."""
    return TokenizerCodec(PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template="{{ messages }}"))
