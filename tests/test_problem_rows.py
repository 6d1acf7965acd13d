"""Rows as people have them: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.config import PipelineConfig, apply_overrides
from pipeline_lib.grading import extract_answer
from pipeline_lib.problems.formats import gold_after_hashes
from pipeline_lib.problems.rows import ProblemsError
from pipeline_lib.problems.sources import load_problems

GOOD = [{"question": "How many?", "answer": "1"}, {"question": "How much?", "answer": "2"}]


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "command"),
    [
        (r"What is \frac{1}{2}?", r"\frac"),
        (r"Find \beta.", r"\beta"),
        (r"Let \theta be 1.", r"\theta"),
        (r"Is 1\times 2 \text{ cm}?", r"\times"),
        (r"Is a \neq b?", r"\neq"),
        (r"Is \right) open?", r"\right"),
    ],
)
@pytest.mark.parametrize("field", ["question", "answer"])
def test_single_backslashes_in_json_are_named_by_row(tmp_path: Path, text: str, command: str, field: str) -> None:
    good = {"question": "How many?", "answer": r"so \boxed{1}"}
    broken = json.dumps({**good, field: text}).replace("\\\\", "\\")
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(good) + "\n" + broken + "\n", encoding="utf-8")
    pool = load_problems("file", "train", path=path, extract_gold=extract_answer)
    assert len(pool) == 1
    assert pool.skipped[0].reason.startswith(f"{path}, row 2, field {field!r}: a control character")
    assert f"{command} was written with one backslash; JSON needs two" in pool.skipped[0].reason
    with pytest.raises(ProblemsError, match=r"own\.jsonl, row 2, field"):
        load_problems("file", "train", path=path, extract_gold=extract_answer, on_bad_row="refuse")


def test_an_answer_that_begins_with_a_lost_backslash_is_no_rac(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "q", "answer": "2"}\n{"question": "r", "answer": "\\frac{1}{2}"}\n', encoding="utf-8")
    assert [problem.answer for problem in load_problems("file", "train", path=path)] == ["2"]


def test_what_python_made_of_backslashes_is_named_in_tables_too(tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    pq.write_table(pa.table({"question": ["q", "Find \x0bec{v}."], "answer": ["1", "2"]}), path)
    assert r"\vec was written with one backslash" in load_problems("file", "train", path=path).skipped[0].reason


def test_other_escapes_say_what_json_wants(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"question": "q", "answer": "2"}\n{"question": "\\sqrt{4}?", "answer": "2"}\n', encoding="utf-8")
    assert "each backslash of LaTeX is written twice" in load_problems("file", "train", path=path).skipped[0].reason


@given(st.text(alphabet="abc \n\t\r.$\\{}12", max_size=60))
def test_texts_without_commands_keep_their_lines_and_tabs(text: str) -> None:
    from pipeline_lib.problems.rows import Row, text_of

    assert text_of(Row("f", 1, {"question": f"x{text}x"}), "question") == f"x{text}x"


@pytest.mark.parametrize("text", ["Ann:\tan apple", "one\tan\nhour", "A\tan", "price\topen"])
def test_a_word_behind_a_tab_is_no_command(text: str) -> None:
    from pipeline_lib.problems.rows import Row, text_of

    assert text_of(Row("f", 1, {"question": text}), "question") == text


@pytest.mark.parametrize("angle", ["an x", "an(x)", "an 45", r"an\theta", "an^2 x", "an x=1"])
def test_a_tangent_of_an_angle_is_one(angle: str) -> None:
    from pipeline_lib.problems.rows import BadRow, Row, text_of

    assert isinstance(text_of(Row("f", 1, {"question": f"Find \t{angle}."}), "question"), BadRow)


@pytest.mark.parametrize("blank", ["null", '""', '" "', "NaN"])
def test_a_blank_answer_falls_back_to_the_solution(tmp_path: Path, blank: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"problem": "p", "answer": {blank}, "solution": "so \\\\boxed{{7}}"}}\n', encoding="utf-8")
    assert load_problems("math", "train", path=path)[0].answer == "7"


def test_a_blank_answer_of_a_table_does_too(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("problem,answer,solution\np,,so \\boxed{7}\nq,3,so \\boxed{8}\n")
    assert [p.answer for p in load_problems("math", "train", path=tmp_path)] == ["7", "3"]
    table = pa.table({"problem": ["p"], "answer": [float("nan")], "solution": [r"\boxed{7}"]})
    pq.write_table(table, tmp_path / "own.parquet")
    assert load_problems("math", "train", path=tmp_path / "own.parquet")[0].answer == "7"


@pytest.mark.parametrize(
    ("tail", "gold"),
    [
        ("72", "72"),
        ("$5", "5"),
        ("5.", "5"),
        ("$5.", "5"),
        ("5 apples", "5"),
        ("5 square feet.", "5"),
        ("60 miles/hour", "60"),
        ("1,200", "1200"),
        ("$1,234,567.50", "1234567.50"),
        ("-$3", "-3"),
        ("$-3", "-3"),
        ("20%", "20"),
        (".5", ".5"),
        ("many", None),
        ("", None),
        ("5 or 6", None),
        ("5 and a half", None),
        ("5 million", None),
        ("1/2", None),
        ("3,5", None),
        ("5 apples and 3 pears", None),
    ],
)
def test_golds_of_gsm8k(tail: str, gold: str | None) -> None:
    assert gold_after_hashes(f"work\n#### {tail}") == gold


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.jsonl", "".join(json.dumps(row) + "\n" for row in GOOD).encode("utf-16")),
        ("own.json", json.dumps(GOOD).encode("utf-16")),
        ("own.csv", "question,answer\nHow many?,1\nHow much?,2\n".encode("utf-16")),
        ("own.csv", "question,answer\nHow many?,1\nHow much?,2\n".encode("utf-32")),
        ("own.csv", b'question, answer\n"How many?", 1\n"How much?", "2"\n'),
        ("own.csv", b" question ,answer \nHow many?,1\nHow much?,2\n"),
        ("own.json", "".join(json.dumps(row) + "\n" for row in GOOD).encode()),
        ("own.json", b"\n\n" + "\n\n".join(json.dumps(row) for row in GOOD).encode()),
        ("own.json", json.dumps(GOOD, indent=2).encode()),
        ("own.jsonl", json.dumps(GOOD, indent=2).encode()),
        ("own.jsonl", json.dumps(GOOD).encode()),
        ("own.jsonl", (",\n".join(json.dumps(row) for row in GOOD)).join("[]").encode()),
        ("own.jsonl", b'{" question": "How many?", "answer ": 1}\n{"question": "How much?", "answer": 2}\n'),
    ],
)
def test_files_are_read_as_they_are_found(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    pool = load_problems("file", "train", path=path, on_bad_row="refuse")
    assert [(p.question, p.answer) for p in pool] == [("How many?", "1"), ("How much?", "2")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question,answer\nq,1\n".encode("utf-16-le"), "looks like UTF-16 without a byte order mark; save it as UTF-8"),
        ("question,answer\nq,1\n".encode("utf-16")[:-1], "cannot be decoded .*; save it as UTF-8"),
    ],
)
def test_other_encodings_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(ProblemsError, match=message) as caught:
        load_problems("file", "train", path=tmp_path / "own.csv")
    assert "\n" not in str(caught.value)


def columns(*overrides: str) -> Any:
    return apply_overrides(PipelineConfig(), [f"problems.columns.{text}" for text in overrides]).problems.columns


def test_columns_are_mapped_and_may_be_nested(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "How many?"}],
        "reward_model": {"ground_truth": "34", "style": "rule"},
        "extra.id": "dotted",
    }
    nested = columns("question=prompt.0.content", "answer=reward_model.ground_truth")
    for dataset, path in {
        "file": write_lines(tmp_path / "own.jsonl", row),
        "math": write_lines(tmp_path / "train.jsonl", row),
    }.items():
        pool = load_problems(dataset, "train", path=path, columns=nested)
        assert (pool[0].question, pool[0].answer) == ("How many?", "34")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "own.parquet")
    assert load_problems("file", "train", path=tmp_path / "own.parquet", columns=nested)[0].answer == "34"
    dotted = columns("question=extra.id", "answer=reward_model.ground_truth")
    assert load_problems("file", "train", path=tmp_path / "own.jsonl", columns=dotted)[0].question == "dotted"


def test_rows_without_the_mapped_column_keep_to_the_datasets_own(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", {"prompt": "a", "answer": "1"}, {"question": "b", "answer": "2"})
    assert [p.question for p in load_problems("file", "train", path=path, columns=columns("question=prompt"))] == [
        "a",
        "b",
    ]


def test_a_nested_value_says_how_it_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", {"prompt": [{"content": "a"}], "answer": {"value": 1}})
    with pytest.raises(ProblemsError, match=r"row 1, field 'prompt': .*name the text inside it, .*prompt\.0\.content"):
        load_problems("file", "train", path=path, columns=columns("question=prompt"))
    with pytest.raises(ProblemsError, match=r"field 'answer': .*name the text inside it, answer\.value"):
        load_problems("file", "train", path=path, columns=columns("question=prompt.0.content"))
    with pytest.raises(ProblemsError, match=r"field 'text': the field is missing \(found: prompt, answer\)"):
        load_problems("file", "train", path=path, columns=columns("question=text"))
