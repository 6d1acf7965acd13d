"""The container file: every file, extra and argument that it or compose.yaml names is there; nothing runs as root."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONTAINERFILE = ROOT / "deployments" / "Containerfile"
COMPOSE = ROOT / "deployments" / "compose.yaml"


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments, continued lines joined as a builder joins them."""
    text = "\n".join(line for line in CONTAINERFILE.read_text().splitlines() if not line.startswith("#"))
    lines = [line for line in text.replace("\\\n", "").splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def arguments_of(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def project() -> dict[str, Any]:
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return settings


def test_what_is_copied_is_there_and_may_be_seen_by_the_build() -> None:
    copied = {name for rest in arguments_of("COPY") for name in rest.split()[:-1]}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    ignore = CONTAINERFILE.with_name("Containerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert {name.partition(".")[0] for name in packages} < copied


def test_libraries_are_those_of_pyproject_with_the_extras_that_are_asked_for(tmp_path: Path) -> None:
    [command] = [rest for rest in arguments_of("RUN") if "requirements.txt" in rest]
    listing = command.partition(" > requirements.txt")[0]
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "python").symlink_to(sys.executable)
    for extras in ("", "postgres", "postgres,ray"):
        environment = {"EXTRAS": extras, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            ["sh", "-c", listing], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        added = [line for name in extras.split(",") if name for line in project()["optional-dependencies"][name]]
        assert done.stdout.splitlines() == [*project()["dependencies"], *added]
    assert "-c constraints.txt" in command


def test_python_is_one_that_the_project_takes_and_the_image_runs_as_a_user() -> None:
    order = [name for name, _ in instructions()]
    assert order[0] == "FROM"
    [python] = re.findall(r"^python:3\.(\d+)-slim-[a-z]+$", arguments_of("FROM")[0])
    assert int(python) >= int(project()["requires-python"].rpartition(".")[2])
    assert arguments_of("USER") == ["coppice"]
    assert order.index("USER") > max(place for place, name in enumerate(order) if name in ("RUN", "COPY"))
    assert order[-1] == "CMD"


def test_compose_builds_this_file_with_arguments_and_extras_that_exist() -> None:
    build = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["x-coppice"]["build"]
    context = (COMPOSE.parent / build["context"]).resolve()
    assert (context, context / build["dockerfile"]) == (ROOT, CONTAINERFILE)
    declared = {rest.partition("=")[0] for rest in arguments_of("ARG")}
    assert set(build["args"]) <= declared
    extras = {
        *build["args"]["EXTRAS"].split(","),
        *dict(a.split("=") for a in arguments_of("ARG") if "=" in a)["EXTRAS"].split(","),
    }
    assert extras <= set(project()["optional-dependencies"])
    assert "postgres" in extras
