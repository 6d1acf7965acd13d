from itertools import accumulate, pairwise

import numpy as np
import pytest
from search_fixtures import LetterCodec, make_problems, search

from pipeline_lib.search import split_steps
from pipeline_lib.search.markdown import step_ends


def steps(*lines: str) -> list[list[str]]:
    """The lines of each step, line feeds left out."""
    text = "".join(f"{line}\n" for line in lines)
    ends = list(step_ends(text, accumulate(len(line) + 1 for line in lines)))
    borders = [0, *ends, len(text)]
    pieces = [text[a:b] for a, b in pairwise(borders)]
    return [piece.removesuffix("\n").split("\n") for piece in pieces if piece.strip()]


def test_plain_and_numbered_lines_are_steps_of_their_own() -> None:
    lines = [
        "In April she sold 48 clips.",
        "1. In May she sold 48/2 = 24.",
        "- So 48+24 = 72.",
        "Step 3: done.",
        "#### 72",
    ]
    assert steps(*lines) == [[line] for line in lines]


@pytest.mark.parametrize(
    "label",
    [
        "## Step 1",
        "### Find the **second** term",
        "**Step 1:**",
        "**Step 1: Add the numbers**",
        "1. **Add the numbers**:",
        "Step 2:",
        "2.",
        "-",
        "---",
        "So we get:",
        "First,",
        "x =",
        r"x &= 2 \\",
        "we have $x =$",
    ],
)
def test_what_names_or_announces_stays_with_what_follows(label: str) -> None:
    assert steps("A.", label, "", "B.", "C.") == [["A."], [label, "", "B."], ["C."]]


@pytest.mark.parametrize("answer", ["#### 72", "#### -1,200", "#### $5", "x = 2", "**bold** and more.", "Step 2: go."])
def test_what_says_something_does_not(answer: str) -> None:
    assert steps("A.", answer, "B.") == [["A."], [answer], ["B."]]


@pytest.mark.parametrize(
    "formula",
    [
        [r"\[", "x", r"+ y", r"\]"],
        ["$$", "x", "$$"],
        [r"\begin{align}", "x &= 1", "y &= 2", r"\end{align}"],
        ["```python", "x", "", "y", "```"],
    ],
)
def test_a_formula_or_a_fence_is_not_cut(formula: list[str]) -> None:
    assert steps("A.", *formula, "B.") == [["A."], formula, ["B."]]


def test_a_formula_that_is_never_closed_ends_with_its_paragraph() -> None:
    assert steps(r"\[", "x", "", "B.", "C.") == [[r"\[", "x"], ["B."], ["C."]]


def test_split_steps_cuts_tokens_at_these_ends() -> None:
    codec, text = LetterCodec(), "So:\nab\nc"
    ids = codec.encode(text)
    found = split_steps(ids, codec, "\n", markdown=True)
    assert [step.text for step in found] == ["So:\nab\n", "c"]
    assert np.array_equal(np.concatenate([step.token_ids for step in found]), ids)


@pytest.mark.parametrize(
    ("markdown", "expected"), [(False, ["", "So:\n", "ab\n", "#1"]), (True, ["", "So:\nab\n", "#1"])]
)
def test_the_search_cuts_as_it_is_told(markdown: bool, expected: list[str]) -> None:
    trees, _, _ = search(
        lambda prefix, seed: "So:\nab\n#1", make_problems(1), num_simulations=1, markdown_steps=markdown
    )
    (tree,) = trees.values()
    assert list(tree.steps) == expected
