"""The sets of one run: what is trained on, validated and tested shares no question, and nothing is dropped unnamed."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deployments.preflight.findings import Findings
from deployments.preflight.problem_checks import check_problems
from deployments.presets import preset
from pipeline_lib.config import ConfigError, PipelineConfig, Settings, apply_overrides
from pipeline_lib.problems.problem_table import read_problems
from pipeline_lib.problems.rows import ProblemsError
from pipeline_lib.problems.run_sets import check_datasets, training_pool
from pipeline_lib.problems.tiny import make_problem
from pipeline_lib.store import write_json
from pipeline_lib.types import Problem
from tasks.problems import NOTES_OF_0_1_0, PROBLEMS, draw_problems, draw_test_problems, notes_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path / "home"))


def write_rows(path: Path, questions: Sequence[str], answer: str = "#### 1", **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question": question, "problem": question, "answer": answer, **more} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config_of(path: Path, *overrides: str, test: str = "tiny-word") -> PipelineConfig:
    small = (
        "problems.dataset=file",
        f"problems.path={path}",
        "problems.num_problems=1000",
        f"evaluation.datasets={test}",
    )
    return apply_overrides(
        PipelineConfig(), [*small, "problems.num_validation=10", "evaluation.num_problems=20", *overrides]
    )


def made(stage: Any, **arguments: Any) -> list[Problem]:
    """What a stage draws, without an orchestrator."""
    stage._task.fn(**arguments)
    return read_problems(stage.entry(**arguments).path / PROBLEMS)


def questions_of(config: PipelineConfig, iteration: int) -> list[str]:
    return [problem.question for problem in made(draw_problems, config=config, iteration=iteration)]


def skipped_of(config: PipelineConfig, iteration: int) -> list[str]:
    return notes_of(draw_problems.entry(config=config, iteration=iteration))


def numbered(*numbers: range) -> list[str]:
    return [f"How much is {i} plus {i}?" for some in numbers for i in some]


def test_one_unlabelled_file_is_not_trained_on_and_tested(tmp_path: Path) -> None:
    both = write_rows(tmp_path / "own.jsonl", numbered(range(60), range(60)))
    config = config_of(both, test=f"file={both}")
    calls = [
        lambda: made(draw_problems, config=config, iteration=1),
        lambda: made(draw_problems, config=config, iteration=0),
        lambda: made(draw_test_problems, config=config, dataset="file", path=str(both)),
        lambda: check_problems(config, Settings(), Findings()),
    ]
    for call in calls:
        with pytest.raises(ProblemsError, match=r"own\.jsonl is read for training and for the test set file") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_repeated_questions_do_not_cross_the_validation_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ways = ("{}", "  {} ", "{}.", "\n{}?")
    texts = [way.format(f"How much  is {i} plus {i}?") for way in ways for i in range(60)]
    texts += [text.upper() for text in texts]
    config = config_of(write_rows(tmp_path / "train.jsonl", texts))
    with caplog.at_level(logging.WARNING, "coppice.progress"):
        validation, trained = questions_of(config, 0), questions_of(config, 1)
    assert len(validation) == 10
    assert len({text.lower().split()[3] for text in validation + trained}) == 60 == len(validation + trained)
    first = f"file/train: 420 rows repeat the question of an earlier one and are left out; the first: {tmp_path}"
    for iteration in (0, 1):
        assert skipped_of(config, iteration)[0] == f"{first}/train.jsonl, row 61, as row 1"
    assert first in caplog.text
    assert "420 rows repeat" in check_problems(config, Settings(), Findings())


def test_a_repeat_with_another_answer_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", numbered(range(30)))
    write_rows(tmp_path / "more.jsonl", numbered(range(3)), answer="#### 2")
    path.write_text(path.read_text() + (tmp_path / "more.jsonl").read_text())
    config = config_of(path)
    questions_of(config, 1)
    assert skipped_of(config, 1)[0].endswith(
        f"{path}, row 31, as row 1; 3 of them have another answer, the first: {path}, row 31: '2' instead of '1'"
    )


def test_a_set_of_repeats_trains_on_no_question_of_validation(tmp_path: Path) -> None:
    config = config_of(write_rows(tmp_path / "train.jsonl", numbered(range(170)) * 100))
    validation, trained = set(questions_of(config, 0)), set(questions_of(config, 1))
    assert (len(validation), len(trained), validation & trained) == (10, 160, set())


def test_what_stands_in_a_test_set_is_neither_trained_on_nor_held_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", numbered(range(100)))
    test = write_rows(tmp_path / "test.jsonl", [text.upper() for text in numbered(range(40))])
    config = config_of(path, test=json.dumps([f"file={test}", f"math={test}"]))
    validation, trained = questions_of(config, 0), questions_of(config, 1)
    assert sorted(validation + trained) == sorted(numbered(range(40, 100)))
    line = f"40 of 100 questions stand in the test set file too and are left out; the first: {path}, row 1"
    for iteration in (0, 1):
        assert skipped_of(config, iteration) == [f"file/train: {line}"]
    assert line in check_problems(config, Settings(), Findings())


def test_a_train_split_that_is_all_in_a_test_set_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", numbered(range(20)))
    copy = write_rows(tmp_path / "copy" / "own.jsonl", numbered(range(20)))
    config = config_of(path, test=f"file={copy}")
    with pytest.raises(ProblemsError, match=r"all 20 questions of file/train stand in the test set file"):
        questions_of(config, 1)


def test_other_test_sets_make_another_draw(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", numbered(range(100)))
    test = write_rows(tmp_path / "test.jsonl", numbered(range(40)))
    config = config_of(path, test=f"file={test}")
    before = [draw_problems.entry(config=config, iteration=i).uri for i in (0, 1)]
    assert [draw_problems.entry(config=config_of(path), iteration=i).uri for i in (0, 1)] != before
    write_rows(test, numbered(range(50)))
    assert not set(before) & {draw_problems.entry(config=config, iteration=i).uri for i in (0, 1)}


def test_generated_problems_give_way_to_a_test_set_too(tmp_path: Path) -> None:
    config = apply_overrides(
        preset("tiny"), ["problems.num_problems=12", "problems.num_validation=6", "evaluation.num_problems=5"]
    )
    drawn = [made(draw_problems, config=config, iteration=iteration) for iteration in (0, 1, 2)]
    taken = [drawn[0][2], drawn[1][5], drawn[2][7]]
    test = write_rows(tmp_path / "test.jsonl", [problem.question for problem in taken])
    other = apply_overrides(config, [f"evaluation.datasets=file={test}"])
    for iteration, before in enumerate(drawn):
        after = made(draw_problems, config=other, iteration=iteration)
        assert [a != b for a, b in zip(after, before, strict=True)] == [problem in taken for problem in before]
        assert len({problem.question for problem in after}) == len(after)
        assert skipped_of(other, iteration)[0].endswith(f"in their place; the first: {taken[iteration].problem_id}")


@pytest.mark.parametrize(
    "place", ["valid.jsonl", "dev.jsonl", "validation-00000-of-00001.jsonl", "dev/own.jsonl", "elsewhere"]
)
def test_a_validation_set_of_the_users_is_taken(tmp_path: Path, place: str) -> None:
    write_rows(tmp_path / "data" / "train.jsonl", numbered(range(100)))
    elsewhere = place == "elsewhere"
    own = write_rows(tmp_path / ("my-set.jsonl" if elsewhere else f"data/{place}"), numbered(range(90, 130)))
    test = write_rows(tmp_path / "test.jsonl", numbered(range(100, 110)))
    more = (f"problems.validation_path={own}",) if elsewhere else ()
    config = config_of(tmp_path / "data", "problems.num_validation=25", *more, test=f"file={test}")
    validation, trained = set(questions_of(config, 0)), set(questions_of(config, 1))
    assert len(validation) == 25
    assert validation <= set(numbered(range(90, 100), range(110, 130)))
    assert trained == set(numbered(range(90)))
    assert skipped_of(config, 0)[0].startswith("file/validation: 10 of 40 questions stand in the test set file")
    assert skipped_of(config, 1)[0].startswith("file/train: 10 of 100 questions stand in the validation set")


def test_a_file_named_train_finds_the_validation_file_beside_it(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "my-train.jsonl", numbered(range(50)))
    write_rows(tmp_path / "my-valid.jsonl", numbered(range(50, 60)))
    assert set(questions_of(config_of(path), 0)) == set(numbered(range(50, 60)))
    write_rows(tmp_path / "my-dev.jsonl", numbered(range(50, 60)))
    with pytest.raises(ProblemsError, match=r"my-valid\.jsonl and .*my-dev\.jsonl .*problems\.validation_path"):
        questions_of(config_of(path), 0)


def test_runs_share_a_validation_set_whatever_their_seed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.jsonl", numbered(range(100)))
    first, second = config_of(path), config_of(path, "seed=1")
    assert questions_of(first, 0) == questions_of(second, 0)
    assert draw_problems.entry(config=first, iteration=0).uri == draw_problems.entry(config=second, iteration=0).uri
    assert questions_of(first, 1) != questions_of(second, 1)
    other = config_of(path, "problems.validation_seed=1")
    assert set(questions_of(other, 0)) != set(questions_of(first, 0))
    assert not set(questions_of(other, 0)) & set(questions_of(other, 1))


def test_a_test_set_is_no_head_of_a_file(tmp_path: Path) -> None:
    for subject in ("algebra", "geometry", "number_theory"):
        texts = [f"{subject} {i}" for i in range(40)]
        write_rows(tmp_path / "MATH" / "test" / f"{subject}.jsonl", texts, type=subject)

    def tested(*overrides: str) -> list[Problem]:
        config = apply_overrides(PipelineConfig(), ["evaluation.num_problems=20", *overrides])
        return made(draw_test_problems, config=config, dataset="math", path=str(tmp_path / "MATH"))

    problems = tested()
    assert len({problem.metadata["subject"] for problem in problems}) == 3
    assert tested("seed=1") == problems
    assert tested("evaluation.num_problems=30")[:20] == problems


def test_test_sets_of_one_kind_have_names_and_formats_of_their_own(tmp_path: Path) -> None:
    aime = write_rows(tmp_path / "aime.jsonl", numbered(range(3)), answer="1")
    amc = write_rows(tmp_path / "amc.jsonl", numbered(range(3)), answer=r"#### 1")
    test = json.dumps([f"aime:math={aime}", f"amc-12:gsm8k={amc}", f"math={aime}", f"amc:file={amc}"])
    config = config_of(tmp_path / "none.jsonl", test=test)
    drawn = {}
    for named in config.evaluation.test_sets:
        arguments = {"dataset": named.dataset, "path": named.path, "name": named.name}
        drawn[named.name] = made(draw_test_problems, config=config, **arguments)
    assert {name: problems[0].dataset for name, problems in drawn.items()} == {
        "aime": "math",
        "amc-12": "gsm8k",
        "math": "math",
        "amc": "file",
    }
    assert all(problem.set_name == name for name, problems in drawn.items() for problem in problems)
    assert {problem.problem_id for problem in drawn["aime"]} == {f"aime/test/{i:05d}" for i in range(3)}
    assert {problem.answer for problems in drawn.values() for problem in problems} == {"1"}


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("aime=aime.jsonl", "dataset 'aime' is not known.*NAME:DATASET=PATH"),
        ("aime:maths=aime.jsonl", "dataset 'maths' is not known"),
        ("gsm8k:math=aime.jsonl", "gsm8k is another dataset; choose another name"),
        ("words:tiny-word=aime.jsonl", "tiny-word is generated"),
    ],
)
def test_a_test_set_that_says_two_things_is_refused(tmp_path: Path, test: str, message: str) -> None:
    config = config_of(write_rows(tmp_path / "train.jsonl", numbered(range(30))), test=test)
    with pytest.raises(ConfigError, match=message):
        check_datasets(config)
    with pytest.raises(ConfigError, match=message):
        training_pool(config)


def test_generated_test_sets_and_keys_are_those_of_0_1_0() -> None:
    config = preset("tiny")
    draws = [draw_problems.entry(config=config, iteration=i).uri for i in range(3)]
    draws += [
        draw_test_problems.entry(config=config, dataset=name, path=None).uri for name in config.evaluation.datasets
    ]
    assert [uri.partition("/")[2][:16] for uri in draws] == [
        "01af7f3ba1e78237",
        "fe1c51b2515ac110",
        "d40aa280a25b1e4f",
        "c68620768be093d0",
        "70229185324db248",
    ]
    few = apply_overrides(config, ["evaluation.num_problems=3"])
    asked = made(draw_test_problems, config=few, dataset="tiny-word", path=None)
    assert asked == [make_problem("tiny-word", "test", i) for i in range(3)]


def test_the_same_rows_at_another_place_are_the_same_sets_whatever_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a champion is said to be measured on other validation problems because a folder was moved."""

    def drawn(place: str) -> list[str]:
        monkeypatch.setenv("COPPICE_HOME", str(tmp_path / place / "home"))
        train = write_rows(tmp_path / place / "train.jsonl", [*numbered(range(40), range(5)), ""])
        test = write_rows(tmp_path / place / "test.jsonl", numbered(range(30, 45), range(30, 32)))
        config = config_of(train, test=f"file={test}")
        for iteration in (0, 1):
            made(draw_problems, config=config, iteration=iteration)
            assert [str(train) in note for note in skipped_of(config, iteration)] == [True] * 3
        made(draw_test_problems, config=config, dataset="file", path=str(test))
        tested = draw_test_problems.entry(config=config, dataset="file", path=str(test))
        assert [str(test) in note for note in notes_of(tested)] == [True]
        entries = [draw_problems.entry(config=config, iteration=iteration) for iteration in (0, 1)]
        return [entry.ref().sha256 for entry in (*entries, tested)]

    assert drawn("here") == drawn("there")


def test_notes_of_an_entry_of_0_1_0_are_read_from_its_file() -> None:
    config = preset("tiny")
    entry = draw_problems.entry(config=config, iteration=0)
    write_json(entry.path / NOTES_OF_0_1_0, ["old.jsonl, row 2: no answer"])
    entry.commit(1)
    assert skipped_of(config, 0) == ["old.jsonl, row 2: no answer"]
