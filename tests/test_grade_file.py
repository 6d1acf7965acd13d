from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deployments.command.tools.grade_file import GradeCounts, _text_of, grade_file, print_counts
from deployments.command.tools.grade_file import read_rows as rows_of_input
from pipeline_lib.config import ConfigError
from pipeline_lib.types import Grade

ROWS = [
    {"id": 1, "gold": "1+x", "prediction": r"So \boxed{x+1}.", "note": ["kept"]},
    {"id": 2, "gold": "5", "prediction": "#### 6", "answer": "of the data set"},
    {"id": 3, "gold": "5", "prediction": "Hm. \ud800"},
    {"id": 4, "gold": "\u2028 5", "prediction": "#### 5\u2028"},
]


def coppice(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The real command, in `folder`."""
    command = [sys.executable, "-m", "deployments.command.app", *map(str, arguments)]
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(folder)]), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_the_speed_stands_on_one_line_however_fast_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    print_counts(GradeCounts(Counter({Grade.CORRECT: 4}), seconds=0.00385))
    assert capsys.readouterr().out.splitlines()[0] == "4 answers in 0.0 s, 1039 per second"


def test_rows_keep_their_order_and_fields_and_get_grade_and_answer(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    done = coppice("grade", "--input", source, "--output", "out.jsonl", "--workers", 1, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    added = [("correct", "x+1"), ("wrong", "6"), ("unparsed", None), ("correct", "5")]
    rows = [{**row, "grade": grade, "answer": answer} for row, (grade, answer) in zip(ROWS, added, strict=True)]
    rows[1] |= {"answer": "of the data set", "extracted": "6"}
    assert read_rows(tmp_path / "out.jsonl") == rows
    for text in ("4 answers in", "per second", "correct", "timeout", "50.0"):
        assert text in done.stdout
    assert re.fullmatch(r"grade: 4/4 in \d+ s\n", done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.slow
def test_numbers_nulls_announced_golds_and_an_earlier_grading_are_taken_as_they_are(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"gold": 5, "prediction": "#### 5"},
        {"gold": 2.5, "prediction": 2.5},
        {"gold": "5", "prediction": None},
        {"gold": "So the answer is 5.", "prediction": r"\boxed{5}"},
        {"gold": "5", "prediction": "#### 6", "grade": "unparsed", "answer": None, "reward": 0.25, "reason": "stale"},
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    done = coppice("grade", "--input", source, "--output", "out.jsonl", "--workers", 1, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    added = [("correct", "5"), ("correct", "2.5"), ("unparsed", None), ("correct", "5"), ("wrong", "6")]
    del rows[-1]["reward"], rows[-1]["reason"]
    expected = [{**row, "grade": grade, "answer": answer} for row, (grade, answer) in zip(rows, added, strict=True)]
    assert read_rows(tmp_path / "out.jsonl") == expected


def test_an_answer_of_the_rows_own_outlives_every_grading(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"gold": "5", "prediction": "#### 5"},
        {"gold": "5", "prediction": "#### 6", "answer": "own"},
        {"gold": "5", "prediction": "#### 6", "answer": "labelled", "grade": "correct"},
        {"gold": "5", "prediction": "#### 5", "answer": None, "note": 1e-7},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    grade_file(path, path, num_workers=1)
    once = read_rows(path)
    assert once == [
        {**rows[0], "grade": "correct", "answer": "5"},
        {**rows[1], "grade": "wrong", "extracted": "6"},
        {**rows[2], "grade": "wrong", "extracted": "6"},
        {**rows[3], "grade": "correct", "extracted": "5"},
    ]
    grade_file(path, path, num_workers=1)
    assert read_rows(path) == once


@pytest.mark.parametrize("written", ["1e-7", "0.10", "0.12345678901234567890123", "5", "-3"])
def test_a_number_is_graded_as_it_is_written(tmp_path: Path, written: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"gold": {written}, "prediction": {written}}}\n')
    (row,) = rows_of_input(path)
    assert [_text_of(row, field) for field in ("gold", "prediction")] == [written, written]
    assert json.loads(json.dumps(row))["gold"] == float(written)


@pytest.mark.parametrize("written", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["gold", "prediction"])
def test_what_is_no_finite_number_is_refused(tmp_path: Path, field: str, written: str) -> None:
    other = {"gold": "prediction", "prediction": "gold"}[field]
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"{other}": 5, "{field}": {written}}}\n')
    with pytest.raises(ConfigError, match=rf"rows\.jsonl, row 1: field '{field}' is no finite number: [^\n]+$"):
        list(rows_of_input(path))


@pytest.mark.slow
def test_a_verifiers_reward_and_reason_are_written(tmp_path: Path) -> None:
    verifier = "def soft(prediction, gold):\n    return 1 / (len(prediction) - 1), f'{len(prediction)} letters'\n"
    (tmp_path / "own.py").write_text(verifier, encoding="utf-8")
    source = write_rows(tmp_path / "in.jsonl", [{"gold": "5", "prediction": text} for text in ("five", "x")])
    done = coppice("grade", "--input", source, "--output", source, "--grader", "own:soft", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = read_rows(source)
    assert (first["grade"], round(first["reward"], 3), first["reason"]) == ("wrong", 0.333, "4 letters")
    assert (second["grade"], second["reason"]) == ("unparsed", "ZeroDivisionError: division by zero")
    assert "ZeroDivisionError: division by zero" in done.stderr


@pytest.mark.slow
def test_a_file_may_be_graded_in_place_by_the_users_own_verifier(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def same(prediction, gold):\n    return prediction.strip() == gold\n")
    rows = [{"gold": str(i % 3), "prediction": f" {i % 2}"} for i in range(30)]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    done = coppice("grade", "--input", source, "--output", source, "--grader", "own:same", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = ["correct" if i % 3 == i % 2 else "wrong" for i in range(30)]
    assert [row["grade"] for row in read_rows(source)] == expected


@pytest.mark.slow
def test_conventions_come_from_the_dataset_and_from_the_user(tmp_path: Path) -> None:
    rows = [{"gold": "0.2", "prediction": r"\boxed{20\%}"}, {"gold": "0.33", "prediction": r"\boxed{1/3}"}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    options = {
        "math": [],
        "gsm8k": ["--dataset", "gsm8k"],
        "rounded": ["--set", "grading.rounded=true"],
    }
    for name, arguments in options.items():
        done = coppice("grade", "--input", source, "--output", f"{name}.jsonl", *arguments, folder=tmp_path)
        assert done.returncode == 0, done.stderr
    grades = {name: [row["grade"] for row in read_rows(tmp_path / f"{name}.jsonl")] for name in options}
    assert grades == {"math": ["correct", "wrong"], "gsm8k": ["wrong", "wrong"], "rounded": ["correct", "correct"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"gold": "5", "prediction": "5"}\n{"gold": "5"}\n', "rows.jsonl, row 2: field 'prediction' is missing"),
        ('{"gold": null, "prediction": "5"}\n', "rows.jsonl, row 1: field 'gold' is neither text nor a number: None"),
        ('{"gold": "5", "prediction": [5]}\n', "row 1: field 'prediction' is neither text nor a number: [5]"),
        ('\n["gold"]\n', "rows.jsonl, row 2: expected an object with the fields gold and prediction"),
        ('{"gold": "5", "prediction": "5"\n', "rows.jsonl, row 1: is no JSON"),
        ("\udcff\n", "rows.jsonl, row 1: is no JSON"),
        ("[" * 100_000, "rows.jsonl, row 1: is no JSON"),
        (None, "rows.jsonl: no such file"),
    ],
)
def test_a_bad_input_is_one_line_and_leaves_the_output_alone(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8", errors="surrogateescape")
    (tmp_path / "out.jsonl").write_text("before", encoding="utf-8")
    done = coppice("grade", "--input", "rows.jsonl", "--output", "out.jsonl", folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "before"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "no/folder/out.jsonl"], "cannot be written"),
        (["--output", "/dev/null"], "is no regular file"),
        (["--output", "out.jsonl", "--grader", "nowhere:verify"], "grader=nowhere:verify: cannot be loaded"),
        (["--output", "out.jsonl", "--grader", "verify"], "expected math or my_package.my_module:verify"),
        (["--output", "out.jsonl", "--set", "search.c_uct=1"], "only grading.* changes anything here"),
        (["--output", "out.jsonl", "--dataset", "gsm9k"], "dataset 'gsm9k' is not known"),
    ],
)
def test_a_bad_option_is_one_line_and_writes_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    done = coppice("grade", "--input", source, *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
