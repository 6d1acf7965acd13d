"""What ``--help`` shows of each command: whole sentences, no names that are gone, words where a value is expected."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from deployments.command import app


def commands(group: object, *above: str) -> Iterator[tuple[str, ...]]:
    """The words that call each command and each group of them, the hidden ones too."""
    yield above
    for name, each in getattr(group, "commands", {}).items():
        yield from commands(each, *above, name)


EVERY = list(commands(typer.main.get_group(app.app)))


def help_of(*words: str) -> str:
    return CliRunner().invoke(app.app, [*words, "--help"], prog_name="coppice").output


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_a_help_page_has_whole_sentences_and_says_in_words_what_goes_where(words: tuple[str, ...]) -> None:
    page = help_of(*words)
    assert page.startswith(f"Usage: coppice {' '.join(words)}".rstrip())
    assert "..." not in page.replace("COMMAND [ARGS]...", "")  # a sentence that was cut off
    assert "[[" not in page
    assert re.findall(r"^  -.*<(?:str|path|list\[str\])>", page, re.MULTILINE) == []  # what the code calls it


def test_a_name_that_is_gone_is_not_listed() -> None:
    page = help_of()
    for old in app.OLD_NAMES:
        assert re.search(rf"^  {old.__name__} ", page, re.MULTILINE) is None
