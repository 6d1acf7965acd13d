"""The wheel: what it holds, and that its commands run on another folder where no checkout is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
from test_packaging import FOR_READERS, PACKAGES, ROOT, tracked_files

pytestmark = pytest.mark.slow
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since a build leaves files beside what it builds."""
    files = tracked_files()
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*files, "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(target)], cwd=source, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    [path] = target.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder it is unpacked to, which is all that installing a wheel without scripts does."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def coppice(installed: Path, tmp_path: Path) -> Run:
    """Runs the wheel's own entry point in an empty folder."""
    [entry_points] = installed.glob("*.dist-info/entry_points.txt")
    module, _, function = entry_points.read_text().partition("coppice = ")[2].strip().partition(":")
    code = f"import {module} as program; assert program.__file__.startswith({str(installed)!r}); program.{function}()"
    environment = os.environ | {"PYTHONPATH": str(installed), "COPPICE_HOME": str(tmp_path / "home")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_the_wheel_is_called_as_pyproject_says_and_needs_what_it_says(wheel: Path, installed: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert wheel.name == f"{project['name'].replace('-', '_')}-{project['version']}-py3-none-any.whl"
    [metadata] = installed.glob("*.dist-info/METADATA")
    required = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist: ")]
    assert len([line for line in required if "extra ==" not in line]) == len(project["dependencies"])
    assert [line for line in required if line.startswith("Requires-Dist: sqlalchemy<2.1")]


def test_the_wheel_holds_every_file_that_the_code_reads(installed: Path) -> None:
    wanted = {name for name in tracked_files() if not any(fnmatch(name, pattern) for pattern in FOR_READERS)}
    wanted |= {name for name in tracked_files() if name.endswith(".py")}
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    found = {name for name in files if name.split("/")[0] in PACKAGES}
    assert (wanted - found, found - set(tracked_files())) == (set(), set())
    assert {name.split("/")[0].partition("-")[0] for name in files} == {*PACKAGES, "coppice_reasoning"}
    assert all((installed / name).read_bytes() == (ROOT / name).read_bytes() for name in wanted)


def test_commands_of_the_wheel_run_where_no_checkout_is(coppice: Run, tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    done = coppice("--version")
    assert (done.stdout, done.stderr) == (f"coppice {version}\n", "")
    (tmp_path / "answers.jsonl").write_text(json.dumps({"gold": "5", "prediction": "The answer is 5."}) + "\n")
    done = coppice("grade", "--input", "answers.jsonl", "--output", "graded.jsonl")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "graded.jsonl").read_text())["grade"] == "correct"
    done = coppice("bench")
    assert (done.returncode, "checkout" in done.stderr) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["answers.jsonl", "graded.jsonl"]


def test_modules_of_the_wheel_find_their_files(installed: Path, tmp_path: Path) -> None:
    code = """
from deployments.service.alerts import AUTOMATIONS_FILE
from deployments.service.worker import PREFECT_FILE
from pipeline_lib.policy.model_folders import TINY_BASE
print(AUTOMATIONS_FILE, PREFECT_FILE, TINY_BASE / "model.safetensors", sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert len(paths) == 3, done.stderr
    assert all(path.is_relative_to(installed) and path.is_file() for path in paths)
