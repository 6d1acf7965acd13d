"""The commands about runs, as a person gives them, in the home that version 0.1.0 left, and what a file of settings is.

One home serves all of them: it is read and not changed.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_old_home import ARCHIVE, move_database

from deployments.command import app as cli
from deployments.command.options import build_config, what_differs
from deployments.presets import preset, preset_names
from pipeline_lib.config import ConfigError, PipelineConfig, apply_overrides
from pipeline_lib.config.yaml_file import config_yaml, read_config_file

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
RUN = "7f4387c9ab004da5a7102fc8229074b1"
Coppice = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def old_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home with one run of version 0.1.0, and a second one that was interrupted."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    home = folder / "coppice-0.1.0"
    move_database(home / "mlflow.db", home)
    client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    first = client.get_run(RUN)
    tags = {"coppice.run_key": "interrupted", "coppice.preset": "tiny", "coppice.seed": "3"}
    second = client.create_run(first.info.experiment_id, run_name="tiny seed 3", tags=tags)
    for name, value in {**first.data.params, "seed": "3", "search.c_uct": "2.0"}.items():
        client.log_param(second.info.run_id, name, value)
    client.log_metric(second.info.run_id, "eval/tiny-word/accuracy", 0.5, step=1)
    client.set_terminated(second.info.run_id, status="KILLED")
    return home


@pytest.fixture
def coppice(old_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Coppice:
    """Gives a command; returns its exit code and what it printed, standard output and standard error."""
    monkeypatch.setenv("COPPICE_HOME", str(old_home))
    monkeypatch.setattr("deployments.environment.prepare_environment", lambda *_, **__: None)  # it outlives a test

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["coppice", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def cells(text: str) -> list[list[str]]:
    """The rows of tables, cell by cell."""
    rows = [re.split("[│┃]", line)[1:-1] for line in text.splitlines() if line[:1] in ("│", "┃")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_list_has_a_row_per_run_with_the_champions_accuracy(coppice: Coppice) -> None:
    code, out, _ = coppice("runs", "ls")
    head, killed, finished = cells(out)
    assert code == 0
    assert head[:8] == ["id", "name", "preset", "state", "started", "took", "iterations", "champion"]
    assert [killed[i] for i in (1, 2, 3, 6, 7, 8)] == ["tiny seed 3", "tiny", "KILLED", "1", "–", "50.0"]
    assert [finished[i] for i in (0, 1, 3, 6, 7, 8)] == [RUN[:8], "tiny seed 0", "FINISHED", "2", "iteration 1", "75.0"]
    [listed] = json.loads(coppice("runs", "ls", "--count", "1", "--json")[1])
    assert (listed["name"], listed["accuracies"], listed["kind"]) == ("tiny seed 3", {"tiny-word": 0.5}, "run")


def test_a_run_is_shown_from_its_settings_to_its_entries(coppice: Coppice, old_home: Path) -> None:
    code, out, _ = coppice("runs", "show", RUN[:4])
    assert code == 0
    assert RUN in out
    assert "champion         iteration 1 (validation accuracy 37.5%, best so far 43.8% in iteration 1)" in out
    assert re.search(r"problems\.num_problems +24  \(preset: 400\)", out)
    rows = cells(out)
    accuracies = {row[0]: row[2] for row in rows if row[1] == "FINISHED"}
    assert accuracies == {"the base": "68.8", "iteration 1": "75.0", "iteration 2": "81.2"}
    entries = [row[3] for row in rows if len(row) == 4 and "/" in row[3]]
    assert len(entries) == 2 + 8 + 8, "two sets, problems, two shards, scores, audit and policy"
    assert [entry for entry in entries if not (old_home / "store" / entry / "manifest.json").is_file()] == []
    shown = json.loads(coppice("runs", "show", RUN, "--json")[1])
    assert shown["differs_from_preset"]["train.lora_rank"] == {"run": "4", "preset": "16"}
    assert Path(shown["paths"]["artifacts"]).is_dir()


def test_two_runs_side_by_side(coppice: Coppice) -> None:
    second = json.loads(coppice("runs", "ls", "--count", "1", "--json")[1])[0]["run_id"]
    code, out, _ = coppice("runs", "diff", RUN, second)
    rows = {row[0]: row[1:] for row in cells(out)}
    assert code == 0
    assert rows["seed"] == ["0", "3"]
    assert rows["search.c_uct"] == ["1.0", "2.0"]
    assert rows["eval/tiny-word/accuracy"] == ["0.75", "0.5", "-0.25"]
    assert rows["train/kl"][1:] == ["–", "–"]
    assert json.loads(coppice("runs", "diff", RUN, second, "--json")[1])["settings"]["seed"] == ["0", "3"]


@pytest.mark.parametrize("arguments", [("runs", "show", "zz"), ("runs", "diff", "zz", RUN), ("resume", "zz")])
def test_an_unknown_id_is_one_line(coppice: Coppice, arguments: tuple[str, ...]) -> None:
    code, _, error = coppice(*arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert "has an id that begins with 'zz'; `coppice runs ls` lists them" in error


def test_as_much_of_an_id_as_tells_it_from_others_is_enough_everywhere(coppice: Coppice, tmp_path: Path) -> None:
    page, folder = tmp_path / "report.html", tmp_path / "out"
    assert coppice("report", "--run", RUN[:6], "--output", str(page)) == (0, f"wrote {page}\n", "")
    code, said, error = coppice("export", "--run", RUN[:6], "--output", str(folder))
    assert (code, said, error) == (
        0,
        f"wrote the adapter of coppice-tiny version 1 to {folder}; README.md there says how to load it\n",
        "",
    )
    for arguments in (("report", "--output", str(page)), ("export", "--output", str(folder / "new"))):
        assert "has an id that begins with 'nowhere'" in coppice(*arguments, "--run", "nowhere")[2]


def test_an_interrupted_run_of_the_old_version_cannot_be_resumed_by_its_id(coppice: Coppice) -> None:
    second = json.loads(coppice("runs", "ls", "--count", "1", "--json")[1])[0]["run_id"]
    code, _, error = coppice("resume", second)
    assert code == 2
    assert "it is unknown or has not finished; give its command again" in error


def test_status_and_logs_of_a_home_in_which_nothing_goes_on(coppice: Coppice, old_home: Path) -> None:
    code, out, _ = coppice("status")
    assert code == 0
    assert [line.split(maxsplit=1)[1] for line in out.splitlines()] == [
        str(old_home),
        *["down"] * 4,
        "none in progress",
    ]
    assert json.loads(coppice("status", "--json")[1])["runs"] == []
    assert coppice("logs")[2].startswith(f"coppice: logs: no run has said anything in this home yet ({old_home}/runs)")
    assert "`coppice run` starts it" in coppice("logs", "--server", "prefect-terminal")[2]
    assert "`coppice up` starts it" in coppice("logs", "--server", "worker")[2]
    log = old_home / "runs" / RUN / "run.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\n", encoding="utf-8")
    assert coppice("logs", RUN[:3], "--count", "2")[1] == "two\nthree\n"
    assert coppice("logs", RUN[:3], "--server", "worker")[2] == "coppice: logs: name a run or --server, not both\n"


def test_what_config_prints_is_what_config_reads(coppice: Coppice, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    changes = ("--set", "search.c_uct=0.5", "--set", "policy.instruction=a: b # c")
    file.write_text(coppice("config", "--preset", "tiny-literal", "--describe", *changes)[1], encoding="utf-8")
    assert "  # Exploration constant of UCB1," in file.read_text(encoding="utf-8")
    expected = apply_overrides(preset("tiny-literal"), ["search.c_uct=0.5", "policy.instruction=a: b # c"])
    assert build_config(None, [], file=file) == expected
    assert build_config(None, ["seed=2"], file=file) == expected.model_copy(update={"seed": 2})


ODD = (
    "name=a: b # c",
    "search.step_delimiter=;\\s",
    'policy.instruction=" x\\n\\ny"',
    'policy.vllm.speculative={"method": "ngram", "n": 3}',
    "train.learning_rate=2e-5",
    'grading.log_base="10"',
    'evaluation.datasets=["aime:math=my files/aime.jsonl"]',
)


@pytest.mark.parametrize("name", preset_names())
def test_every_configuration_survives_its_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for config in (preset(name), apply_overrides(preset(name), [*ODD])):
        for describe in (False, True):
            file.write_text(config_yaml(config, describe=describe), encoding="utf-8")
            assert read_config_file(file).is_whole
            assert read_config_file(file).apply(PipelineConfig()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: -1", "line 1: seed: -1: Input should be greater than or equal to 0"),
        ("search:\n  c_utc: 1", "line 2: no setting is called 'search.c_utc'; the nearest is 'search.c_uct'"),
        ("search: 3", "line 1: search: expected settings"),
        ("seed: 1\nseed: 2", "line 2: seed stands in line 1 already"),
        ("seed: [", "line 1: no YAML"),
        ("seed: !new 1", "line 1: could not determine a constructor"),
        ("- seed", "line 1: the file: expected settings"),
        ("preset: tyni", "line 1: preset tyni: there is none of that name; the nearest is 'tiny'"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(f"{file}, {message}")):
        build_config(None, [], file=file)


def test_a_file_of_a_few_settings_lies_over_its_preset_and_under_set(tmp_path: Path) -> None:
    file = tmp_path / "few.yaml"
    file.write_text("preset: tiny-literal\nsearch: {c_uct: 2, num_simulations: 8}\n", encoding="utf-8")
    config = build_config(None, ["search.num_simulations=4"], file=file)
    assert (config.preset, config.train.negative_clip) == ("tiny-literal", None)
    assert (config.search.c_uct, config.search.num_simulations) == (2.0, 4)
    assert build_config("tiny", [], file=file).train.negative_clip == 0.1


def test_a_made_up_name_follows_the_settings_and_a_given_one_stays(tmp_path: Path) -> None:
    file = tmp_path / "kept.yaml"
    config = build_config(None, ["seed=1", "search.c_uct=2"])
    assert what_differs(config) == "tiny seed 1 c_uct=2.0"
    file.write_text(config_yaml(config.model_copy(update={"name": what_differs(config)})), encoding="utf-8")
    assert what_differs(build_config(None, ["seed=4"], file=file)) == "tiny seed 4 c_uct=2.0"
    assert build_config(None, ["seed=4"], file=file).name is None
    file.write_text(config_yaml(config.model_copy(update={"name": "mine"})), encoding="utf-8")
    assert build_config(None, ["seed=4"], file=file).name == "mine"
    twice = build_config(None, ["problems.num_problems=3", "evaluation.num_problems=4"])
    assert what_differs(twice) == "tiny seed 0 problems.num_problems=3 evaluation.num_problems=4"
