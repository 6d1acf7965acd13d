"""The pages: the first one stays short, links lead somewhere, and what is named exists.

Commands, targets, settings and functions are asked of the program itself, so a page cannot outlive what it tells of.
"""

from __future__ import annotations

import doctest
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import typer
from benchmarks.readme_results import with_results

from deployments.command.app import app
from deployments.presets import preset_names
from pipeline_lib.config import setting_names

ROOT = Path(__file__).resolve().parents[1]
FIRST_PAGE = ROOT / "README.md"
MAX_LINES, MAX_WIDTH = 100, 120
HISTORY = ("CHANGELOG.md", "LOG.md")  # tell also of what is gone
LAYERS = ("deployments", "flows", "tasks", "pipeline_lib")
ELSEWHERE = ("http://", "https://", "mailto:")
PLACEHOLDER = "a.b"  # as in `--set a.b=value`
FILE_ENDINGS = (".html", ".json", ".jsonl", ".md", ".py", ".toml", ".txt", ".yaml")


def pages() -> list[Path]:
    """Every Markdown page of the checkout."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = [ROOT / line for line in listed.splitlines() if (ROOT / line).is_file()]
    return found or [path for path in ROOT.rglob("*.md") if ".venv" not in str(path)]


def is_history(page: Path) -> bool:
    """Whether a page tells of what was once: a log, or what a study of its day found."""
    return page.name in HISTORY or (ROOT / "deployments" / "results") in page.parents[1:]


PAGES = pages()
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
living_page = pytest.mark.parametrize(
    "page", [page for page in PAGES if not is_history(page)], ids=lambda path: str(path.relative_to(ROOT))
)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_of(page: Path) -> list[str]:
    """What a page sets as code: its indented and fenced lines, continued ones joined, and what stands in backticks."""
    text = text_of(page).replace("\\\n", " ")
    prose, lines, is_fenced = [], [], False
    for line in text.splitlines():
        is_fence = line.startswith("```")
        is_fenced ^= is_fence
        if (is_fenced or line.startswith("    ")) and not is_fence:
            lines.append(line.strip())
        elif not is_fence:
            prose.append(line)
    return [*lines, *re.findall(r"`([^`]+)`", "\n".join(prose))]


@cache
def anchors(page: Path) -> set[str]:
    """What links to a heading of a page end in."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_first_page_is_short() -> None:
    lines = text_of(FIRST_PAGE).splitlines()
    assert len(lines) <= MAX_LINES
    assert [line for line in lines if len(line) > MAX_WIDTH] == []


def test_the_table_of_results_is_that_of_the_committed_study() -> None:
    """`python tests/benchmarks/readme_results.py` writes it."""
    page = text_of(FIRST_PAGE)
    assert with_results(page) == page
    other = page.replace("| rft-independent |", "| rft-dependent |")
    assert other != page
    assert with_results(other) == page


@every_page
def test_links_lead_to_what_is_there(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if link.startswith(ELSEWHERE):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@living_page
def test_commands_that_are_named_exist(page: Path) -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = {name for code in code_of(page) for name in re.findall(r"\bcoppice ([a-z][a-z-]*)", code)}
    assert named - known == set()


@living_page
def test_targets_that_are_named_exist(page: Path) -> None:
    known = set(re.findall(r"^([a-z][a-z0-9-]*):", text_of(ROOT / "Makefile"), re.MULTILINE))
    named = {name for code in code_of(page) for name in re.findall(r"\bmake ([a-z][a-z0-9-]*)", code)}
    assert named - known == set()


@living_page
def test_settings_and_presets_that_are_named_exist(page: Path) -> None:
    settings = {name for code in code_of(page) for name in re.findall(r"--set '?([a-z][\w.]*)=", code)}
    assert settings - set(setting_names()) - {PLACEHOLDER} == set()
    presets = {name for code in code_of(page) for name in re.findall(r"--preset ([a-z][\w-]*)", code)}
    assert presets - set(preset_names()) == set()


@living_page
def test_options_that_are_named_exist(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    unknown = []
    for code in code_of(page):
        for name, rest in re.findall(r"\bcoppice ([a-z][a-z-]*)([^;|&`]*)", code.partition("  #")[0]):
            known = {option for parameter in commands[name].params for option in (*parameter.opts, "--help")}
            unknown += [
                f"{name} {option}" for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest) if option not in known
            ]
    assert unknown == []


@living_page
def test_dotted_names_are_settings_or_stand_in_the_code(page: Path) -> None:
    settings = set(setting_names())
    groups = {name.rpartition(".")[0] for name in settings}
    rooms = {path.stem for path in (ROOT / "pipeline_lib").iterdir()}
    named = set(re.findall(r"`([a-z_]+(?:\.\w+)+)(?:=[^`]*|\([^`]*\))?`", text_of(page))) - settings - groups
    ours = {name for name in named if name.partition(".")[0] in rooms | groups | set(LAYERS)}
    unknown = {name for name in ours if not (name.endswith(FILE_ENDINGS) or stands_in_code(name))}
    assert unknown == set()


def stands_in_code(dotted: str) -> bool:
    """Whether a module is called so, or a name in one, with or without its package; or a figure of the benchmarks."""
    if any(f'"{dotted}"' in text_of(file) for file in (ROOT / "tests" / "benchmarks").glob("*.py")):
        return True
    parts = dotted.split(".")
    parts = parts if parts[0] in LAYERS else ["pipeline_lib", *parts]
    for cut in range(len(parts), 1, -1):
        module = ROOT.joinpath(*parts[:cut])
        for file in (module.with_suffix(".py"), module / "__init__.py"):
            if file.is_file():
                return all(re.search(rf"\b{name}\b", text_of(file)) for name in parts[cut:])
    return False


@pytest.mark.parametrize(
    "page", [page for page in PAGES if ">>> " in text_of(page)], ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_a_page_works_out_is_what_comes_out(page: Path) -> None:
    result = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert (result.failed, result.attempted > 0) == (0, True)


def test_every_room_has_a_page() -> None:
    rooms = {path.parent for path in (ROOT / "pipeline_lib").glob("*/__init__.py")}
    folders = rooms | {ROOT / layer for layer in LAYERS} | {ROOT / "mlflow", ROOT / "tests"}
    assert sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "README.md").is_file()) == []
