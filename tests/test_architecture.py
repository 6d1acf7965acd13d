"""The dependency rules: what may import what, where MLflow is, and what a cheap import must not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("deployments", "flows", "tasks", "pipeline_lib")  # each may import those after it
FLOORS = (  # of the library, from the ground up: a room may import those of the floors below, never one of its own
    ("types", "seeding", "config", "distribution"),
    ("store", "grading", "policy", "score", "gate", "report", "registry"),
    ("problems", "search", "training", "evaluation", "tracking", "study"),
)
TOP_LEVEL = {
    *LAYERS,
    "mlflow",
    "tests",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
}
ROOMS_WITH_A_PAGE = (
    "config",
    "store",
    "problems",
    "grading",
    "search",
    "score",
    "evaluation",
    "report",
    "registry",
    "tracking",
)
LIGHT_ROOMS = (
    *("search", "score", "gate", "grading", "problems", "evaluation", "policy.protocol"),
    *(f"training.batches.{name}" for name in ("examples", "packing", "batching")),
)
HEAVY = ("torch", "transformers", "prefect", "mlflow")


def python_files(layer: str) -> list[Path]:
    return sorted((ROOT / layer).rglob("*.py"))


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import; `from a import b` counts as `a.b`, relative ones are resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def offences(files: list[Path], is_forbidden: object) -> list[str]:
    assert callable(is_forbidden)
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imports_of(path)
        if is_forbidden(path, name)
    ]


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_downwards(layer: str) -> None:
    above = LAYERS[: LAYERS.index(layer)]
    assert offences(python_files(layer), lambda _, name: any(is_within(name, other) for other in above)) == []


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def room_of(name: str) -> str:
    """``search`` of ``pipeline_lib.search.tree``."""
    return name.split(".")[1] if is_within(name, "pipeline_lib") and "." in name else ""


def points_up(path: Path, name: str) -> bool:
    own, other = room_of(module_of(path)), room_of(name)
    return bool(own and other) and own != other and floor_of(other) >= floor_of(own)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_rooms_of_the_library_stand_on_lower_ones() -> None:
    assert offences(python_files("pipeline_lib"), points_up) == []


def test_every_room_of_the_library_has_its_floor() -> None:
    rooms = {room for path in python_files("pipeline_lib") if (room := room_of(module_of(path)))}
    assert rooms == {room for floor in FLOORS for room in floor}


def test_no_files_import_each_other_in_a_circle() -> None:
    files = {module_of(path): path for layer in LAYERS for path in python_files(layer)}
    imported = {name: {longest_known(other, files) for _, other in imports_of(path)} for name, path in files.items()}
    graph = TopologicalSorter({name: others - {name, ""} for name, others in imported.items()})
    graph.prepare()  # names a circle where there is one


def longest_known(name: str, files: Mapping[str, Path]) -> str:
    """The module that an imported name is of, or lies in; "" for what is not ours."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def test_files_and_folders_stay_small() -> None:
    files = [path for layer in LAYERS for path in python_files(layer)]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    full = {folder.relative_to(ROOT): n for folder in {p.parent for p in files} if (n := num_files(folder)) > 12}
    assert (long, full) == ({}, {})


def test_no_two_files_of_the_library_have_the_same_name() -> None:
    names = Counter(path.name for path in python_files("pipeline_lib") if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("room", ROOMS_WITH_A_PAGE)
def test_the_page_of_a_room_is_short_and_names_each_of_its_files(room: str) -> None:
    page = ROOT / "pipeline_lib" / room / "README.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    table = [line.split("|")[1] for line in lines if line.startswith("| `")]
    named = {name.rpartition("/")[2] for cell in table for name in re.findall(r"`([\w/]+\.py)`", cell)}
    assert named == {path.name for path in page.parent.rglob("*.py") if path.name != "__init__.py"}
    assert (len(lines) <= 30, [line for line in lines if len(line) > 120]) == (True, [])


def num_files(folder: Path) -> int:
    """Without README.md, the room's map, and the empty py.typed."""
    return sum(path.is_file() and path.name not in ("README.md", "py.typed") for path in folder.iterdir())


def test_the_library_does_not_know_the_orchestrator() -> None:
    assert offences(python_files("pipeline_lib"), lambda _, name: is_within(name, "prefect")) == []


def test_mlflow_is_imported_in_one_file() -> None:
    files = [path for layer in LAYERS for path in python_files(layer)]
    found = {str(path.relative_to(ROOT)) for path in files for _, name in imports_of(path) if is_within(name, "mlflow")}
    assert found == {"pipeline_lib/tracking/client.py"}


def test_no_python_file_shadows_mlflow() -> None:
    assert python_files("mlflow") == []


def test_nothing_unpickles_or_evaluates() -> None:
    def is_risky(_: Path, name: str) -> bool:
        return any(is_within(name, risky) for risky in ("pickle", "cloudpickle", "dill", "joblib", "torch.load"))

    files = [path for layer in LAYERS for path in python_files(layer)]
    assert offences(files, is_risky) == []
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"eval", "exec", "torch.load"}
    ]
    assert calls == []


def test_the_top_level_is_that_of_the_design() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False).stdout
    names = {line.split("/")[0] for line in listed.splitlines()}
    if not names:
        pytest.skip("no git checkout, or nothing committed yet")
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_no_module_is_called_utils_and_tests_are_flat() -> None:
    files = [path for layer in LAYERS for path in python_files(layer)]
    assert [path for path in files if path.stem in {"utils", "helpers", "common"}] == []
    assert list((ROOT / "tests").rglob("__init__.py")) == []
    assert not [path for path in python_files("flows") if path.stem in LAYERS]


def test_every_package_is_listed_for_installation() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent.relative_to(ROOT) for layer in LAYERS for path in python_files(layer)}
    assert {".".join(folder.parts) for folder in folders} <= set(settings["tool"]["setuptools"]["packages"])


def test_light_rooms_load_no_framework() -> None:
    code = f"""
import importlib, sys
for room in {LIGHT_ROOMS}:
    importlib.import_module("pipeline_lib." + room)
    for name in {HEAVY}:
        if name in sys.modules:
            sys.exit(f"pipeline_lib.{{room}} loads {{name}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
