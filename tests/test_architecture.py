"""The dependency rules: what may import what, where MLflow is, and what a cheap import must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("deployments", "flows", "tasks", "pipeline_lib")  # each may import those after it
SHARED = ("types", "config", "seeding", "store", "policy.protocol")
# One module in several files, so that none is long; nobody else in the library reads those below it.
ON_TOP_OF_RECORDS = {
    "config": ("engine_config",),
    "tracking": ("lineage", "metrics", "notes", "outage", "registry", "traces", "tracked_run", "tracked_traces"),
    "registry": ("lineage", "notes", "promotion"),
    "lineage": ("metrics", "promotion"),
    "notes": ("promotion", "report.rows"),
    "tracked_run": ("metrics", "outage"),
    "outage": ("disk",),
    "tracked_traces": ("traces",),
}
TOP_LEVEL = {
    *LAYERS,
    "mlflow",
    "tests",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
}
LIGHT_ROOMS = ("search", "score", "audit", "gate", "grading", "problems", "evaluation", "policy.protocol")
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


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "pipeline_lib").with_suffix("").parts[0]


def crosses_rooms(path: Path, name: str) -> bool:
    room = room_of(path)
    if not is_within(name, "pipeline_lib") or room == "__init__":
        return False
    inner = name.removeprefix("pipeline_lib").removeprefix(".")
    allowed = (room, *SHARED, *ON_TOP_OF_RECORDS.get(room, ()))
    return not any(is_within(inner, other) for other in allowed)


def test_rooms_of_the_library_meet_only_in_shared_modules() -> None:
    assert offences(python_files("pipeline_lib"), crosses_rooms) == []


def test_the_library_does_not_know_the_orchestrator() -> None:
    assert offences(python_files("pipeline_lib"), lambda _, name: is_within(name, "prefect")) == []


def test_mlflow_is_imported_in_one_file() -> None:
    files = [path for layer in LAYERS for path in python_files(layer)]
    found = {str(path.relative_to(ROOT)) for path in files for _, name in imports_of(path) if is_within(name, "mlflow")}
    assert found == {"pipeline_lib/tracking.py"}


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
