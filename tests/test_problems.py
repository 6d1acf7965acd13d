from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.config import ConfigError
from pipeline_lib.grading import extract_answer
from pipeline_lib.problems.draw import draw_problems, hold_out
from pipeline_lib.problems.formats import format_of, gold_in_box
from pipeline_lib.problems.pools import ProblemPool
from pipeline_lib.problems.problem_table import read_problems, write_problems
from pipeline_lib.problems.rows import ProblemsError
from pipeline_lib.problems.sources import load_problems
from pipeline_lib.types import Problem


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def listed(size: int) -> ProblemPool:
    problems = tuple(Problem(f"file/train/{i:05d}", f"q{i}", str(i), "file") for i in range(size))
    return ProblemPool("file/train", problems)


def test_formats_are_known_by_name_and_scale() -> None:
    assert format_of("tiny-word@2") is format_of("tiny-word")
    assert format_of("tiny-word").instruction == ""
    assert "####" in format_of("gsm8k").instruction
    assert r"\boxed{}" in format_of("math").instruction
    with pytest.raises(ConfigError, match=r"gsm9k.*known ones are tiny-word"):
        format_of("gsm9k")


def test_gsm8k_rows_keep_their_number_when_others_are_skipped(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "train.jsonl",
        [
            {"question": "How many?", "answer": "2*600=1200\n#### 1,200"},
            {"question": "How many?"},
            {"question": "", "answer": "#### 1"},
            {"question": "How many?", "answer": "#### many"},
            ["no", "object"],
            {"question": "Cold?", "answer": "#### -3"},
        ],
    )
    pool = load_problems("gsm8k", "train", path=path)
    assert [(p.problem_id, p.answer) for p in pool] == [("gsm8k/train/00000", "1200"), ("gsm8k/train/00005", "-3")]
    assert [(bad.row, bad.field) for bad in pool.skipped] == [(2, "answer"), (3, "question"), (4, "answer"), (5, "")]
    assert all(bad.reason.startswith(f"{path}, row ") and "\n" not in bad.reason for bad in pool.skipped)
    with pytest.raises(ProblemsError, match=r"train.jsonl, row 2, field 'answer': the field is missing"):
        load_problems("gsm8k", "train", path=path, on_bad_row="refuse")


def test_broken_lines_and_bytes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"question": "q", "answer": 4}\n{"question": \n\n{"question": "\xff", "answer": "1"}\n'
    )
    pool = load_problems("file", "train", path=path)
    assert [p.answer for p in pool] == ["4"]
    assert [(bad.row, bad.field) for bad in pool.skipped] == [(2, ""), (4, "question")]
    assert "not valid JSON" in pool.skipped[0].reason
    assert "not UTF-8" in pool.skipped[1].reason


def test_parquet_cells_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    offsets = pa.py_buffer((0).to_bytes(4, "little") + (4).to_bytes(4, "little") + (6).to_bytes(4, "little"))
    questions = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"fine\xff\xfe"))
    pq.write_table(pa.table({"question": questions, "answer": ["1", "2"]}), tmp_path / "train.parquet")
    pool = load_problems("file", "train", path=tmp_path)
    assert [p.question for p in pool] == ["fine"]
    assert [(bad.row, bad.field) for bad in pool.skipped] == [(2, "question")]


def test_large_parquet_text_is_read_likewise(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(end.to_bytes(8, "little") for end in (0, 4, 6)))
    questions = pa.LargeStringArray.from_buffers(2, offsets, pa.py_buffer(b"fine\xff\xfe"))
    pq.write_table(pa.table({"question": questions, "answer": [1, 2]}), tmp_path / "own.parquet")
    pool = load_problems("file", "train", path=tmp_path / "own.parquet")
    assert [p.question for p in pool] == ["fine"]
    assert pool.skipped[0].reason.endswith("own.parquet, row 2, field 'question': not UTF-8; save the file as UTF-8")


def test_csv_says_which_row_lost_its_quotes(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text('question,answer\n"One, two?",3\nOne, two?,3\n"Two\nlines?",4\n', encoding="utf-8")
    pool = load_problems("file", "train", path=path)
    assert [(p.problem_id, p.question, p.answer) for p in pool] == [
        ("file/train/00000", "One, two?", "3"),
        ("file/train/00002", "Two\nlines?", "4"),
    ]
    assert [bad.row for bad in pool.skipped] == [2]
    assert "quotes" in pool.skipped[0].reason


def test_own_answers_may_be_solutions(tmp_path: Path) -> None:
    cut_short = ["####", r"so \boxed{}", r"\boxed{3"]
    answers = ["3/4", r"so \boxed{7}", "1+1=2\n#### 2", "long\nstory", None, True, 0.5, *cut_short, 10**400]
    path = write_jsonl(tmp_path / "own.jsonl", [{"question": f"q{i}", "answer": a} for i, a in enumerate(answers)])
    pool = load_problems("file", "test", path=path, extract_gold=extract_answer)
    assert [p.answer for p in pool] == ["3/4", "7", "2", "0.5", str(10**400)]
    assert [bad.row for bad in pool.skipped] == [4, 5, 6, 8, 9, 10]


@pytest.mark.parametrize("form", ["folder", "split of a folder", "parquet", "jsonl"])
def test_math_survives_the_oddities_of_the_real_rows(form: str, tmp_path: Path) -> None:
    solutions = [
        r"$\boxed{\frac{1}{\sqrt{2}}}$",
        r"first $\boxed{1}$, so $\boxed 2$.",
        r"$\boxed{}$",
        "none",
        r"\boxed{3",
    ]
    rows = [
        {"problem": f"p{i}", "level": "Level ?" if i else "Level 5", "type": "Algebra", "solution": solution}
        for i, solution in enumerate(solutions)
    ]
    skipped: list[tuple[str, int]]
    if form == "jsonl":
        path, skipped = write_jsonl(tmp_path / "train.jsonl", rows), [("train.jsonl", n) for n in (3, 4, 5)]
    elif form == "parquet":
        path, skipped = tmp_path / "train.parquet", [("train.parquet", n) for n in (3, 4, 5)]
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path, skipped = tmp_path / "MATH", [(f"{n}.json", 1) for n in (10, 11, 12)]
        folder = path / "train" / "algebra"
        folder.mkdir(parents=True)
        for number, row in enumerate(rows, 8):
            (folder / f"{number}.json").write_text(json.dumps(row), encoding="utf-8")
        path = path / "train" if form == "split of a folder" else path
    pool = load_problems("math", "train", path=path)
    assert [p.answer for p in pool] == [r"\frac{1}{\sqrt{2}}", "2"]
    assert pool[0].metadata == {"level": "5", "subject": "Algebra"}
    assert pool[1].metadata["level"] == "?"
    assert [(Path(bad.file).name, bad.row) for bad in pool.skipped] == skipped
    assert all(r"no gold: its last \boxed is missing, empty or unclosed" in bad.reason for bad in pool.skipped)


def test_math_500_brings_its_own_answer(tmp_path: Path) -> None:
    row = {
        "problem": "p",
        "solution": r"\boxed{9}",
        "answer": r"\pi",
        "subject": "Geometry",
        "level": 3,
        "unique_id": "a",
    }
    pool = load_problems("math", "test", path=write_jsonl(tmp_path / "test.jsonl", [row]))
    assert pool[0].answer == r"\pi"
    assert pool[0].metadata == {"level": "3", "subject": "Geometry"}


@settings(max_examples=25)
@given(st.lists(st.builds(Problem, st.text(), st.text(), st.text(), st.text(), st.dictionaries(st.text(), st.text()))))
def test_problems_outlive_the_disk(tmp_path_factory: pytest.TempPathFactory, problems: list[Problem]) -> None:
    folder = tmp_path_factory.mktemp("problems")
    write_problems(problems, folder / "a.parquet")
    write_problems(problems, folder / "b.parquet")
    assert read_problems(folder / "a.parquet") == problems
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()


@given(st.text(alphabet="ab\\{}$ 12", max_size=30))
def test_golds_are_read_as_answers_are(solution: str) -> None:
    gold = gold_in_box(rf"\boxed{{{solution}}}")
    if gold is not None and "box" not in solution and "\\" not in solution:
        assert gold == extract_answer(rf"\boxed{{{solution}}}")


def test_training_files_never_stand_in_for_a_test(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [{"question": "q", "answer": "#### 1"}])
    with pytest.raises(ProblemsError, match=r"holds train, and test is asked for; put test.jsonl beside it"):
        load_problems("gsm8k", "test", path=train)
    write_jsonl(tmp_path / "test.jsonl", [{"question": "q", "answer": "#### 2"}])
    assert load_problems("gsm8k", "test", path=train)[0].answer == "2"
    assert load_problems("gsm8k", "test", path=tmp_path)[0].answer == "2"
    sharded = write_jsonl(tmp_path / "main" / "train-00000-of-00001.jsonl", [{"question": "q", "answer": "#### 3"}])
    assert load_problems("gsm8k", "train", path=sharded.parent)[0].answer == "3"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "does not exist"),
        ("own.txt", b"hello", "cannot read .txt files"),
        ("own.parquet", b"hello", "not a readable Parquet file"),
        ("own.jsonl", b"", "no usable problem.*no rows"),
        ("own.jsonl", b"{}\n", "first of 1 bad rows: .*row 1, field 'question'"),
    ],
)
def test_an_unusable_path_is_one_clear_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ProblemsError, match=message) as caught:
        load_problems("file", "train", path=tmp_path / name)
    assert "\n" not in str(caught.value)


def test_the_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("offline\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        ProblemsError, match=r"^cannot load openai/gsm8k \(train\).*offline; go online, or set problems.path"
    ):
        load_problems("gsm8k", "train")
    with pytest.raises(ProblemsError, match=r"math/train is not on the hub; set problems.path"):
        load_problems("math", "train")


def test_tiny_pools_make_only_what_is_drawn() -> None:
    pool = load_problems("tiny-word", "train")
    started = time.perf_counter()
    drawn = draw_problems(pool, 5, num_validation=50, validation_seed=0, seed=0, iteration=3)
    assert time.perf_counter() - started < 1
    assert len(pool) == 100_000
    assert all(p.problem_id.startswith("tiny-word/train/") for p in drawn)
    assert all(p.problem_id.startswith("tiny-word/validation/") for p in hold_out(pool, 5, seed=0))
    with pytest.raises(ConfigError, match="split 'dev'"):
        load_problems("tiny-word", "dev")


def test_all_of_gsm8k_loads(test_data: Path) -> None:
    path = test_data / "gsm8k" / "train.parquet"
    pools = [load_problems("gsm8k", split, path=path, on_bad_row="refuse") for split in ("train", "test")]
    assert [len(pool) for pool in pools] == [7473, 1319]
    assert pools[0][0].answer == "72"
    assert sum(p.answer.startswith("-") for pool in pools for p in pool) == 5


@given(st.integers(2, 40), st.integers(1, 45), st.integers(0, 5), st.integers(0, 99))
def test_draws_go_through_the_pool_before_repeating(size: int, num: int, num_validation: int, seed: int) -> None:
    num_validation = min(num_validation, size - 1)
    pool = listed(size)
    held = {p.problem_id for p in hold_out(pool, num_validation, seed=seed)}
    size_left = size - num_validation
    seen: list[str] = []
    for iteration in range(1, 8):
        draw = draw_problems(
            pool, num, num_validation=num_validation, validation_seed=seed, seed=seed + 1, iteration=iteration
        )
        ids = [p.problem_id for p in draw]
        assert len(set(ids)) == len(ids) == min(num, size_left)
        assert not held & set(ids)
        assert draw.num_reused == len(set(ids) & set(seen))
        assert bool(draw.note) == (draw.num_reused > 0 or num > size_left)
        seen += ids
    assert len(set(seen[:size_left])) == min(len(seen), size_left)


def test_draws_depend_on_the_seed_alone() -> None:
    def ids(**changes: Any) -> list[str]:
        arguments: dict[str, Any] = {"num_validation": 10, "validation_seed": 0, "seed": 0, "iteration": 1, **changes}
        return [p.problem_id for p in draw_problems(listed(100), 20, **arguments)]

    assert ids() == ids()
    assert ids() != ids(seed=1)
    assert not set(ids()) & set(ids(iteration=2))
    assert ids(iteration=1, fresh=False) == ids(iteration=2, fresh=False)


def test_a_validation_set_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ProblemsError, match="num_validation=10: file/train has 10 problems"):
        hold_out(listed(10), 10, seed=0)
