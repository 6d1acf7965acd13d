"""What is installed: each file that the code reads comes along, and `make help` names every target."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("deployments", "flows", "pipeline_lib", "tasks")
FOR_READERS = (
    "*.md",
    "deployments/Containerfile*",
    "deployments/pictures/*",
    "deployments/results/*",
    "deployments/examples/*",
)


def tracked_files() -> list[str]:
    """Files of the packages that git knows; the test is skipped where there is no checkout."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    )
    if not listed.stdout:
        pytest.skip("no git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_every_file_beside_the_code_is_installed_with_it() -> None:
    tracked = tracked_files()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, files in settings["package-data"].items()
        for pattern in files
    ]
    files = [name for name in tracked if not fnmatch(name, "*.py")]
    assert [name for name in files if not any(fnmatch(name, p) for p in (*patterns, *FOR_READERS))] == []
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(files)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_without_a_target_names_every_target() -> None:
    done = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, check=False
    )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [phony] = [line for line in makefile.splitlines() if line.startswith(".PHONY:")]
    named = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert (named, done.stderr) == (phony.split()[1:], "")
