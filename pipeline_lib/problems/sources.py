r"""Datasets as problems, from the hub, from files, or made on the spot.

One idea: a dataset is a sequence of `Problem`; a list where rows were read, lazy where they are
generated, and nobody after this file can tell. A row's number is part of its problem's id, so ids do
not shift when another row is dropped. Of rows that ask the same the first is kept.

1. ``gsm8k``: columns question and answer, which ends in ``#### n``.
2. ``math``: columns problem and solution (gold: the last ``\boxed``), or with an answer column, as
   MATH-500 has; level, type or subject become metadata. The train split has no copy on the hub since
   January 2025: the user supplies one.
3. ``file``: the user's own question and answer; the answer alone, or a solution that ends as above.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pipeline_lib.config import ColumnsConfig
from pipeline_lib.policy.prompting.stop_rule import AnswerMark
from pipeline_lib.problems.formats import format_of, gold_after_hashes, gold_in_box
from pipeline_lib.problems.hub import hub_name, hub_rows, load_hub
from pipeline_lib.problems.pools import GeneratedProblems, ProblemPool
from pipeline_lib.problems.questions import Repeats
from pipeline_lib.problems.row_files import read_rows
from pipeline_lib.problems.rows import BadRow, ProblemsError, Row, is_blank, text_of
from pipeline_lib.problems.splits import find_files, find_validation
from pipeline_lib.problems.tiny import is_tiny, make_worked_problem
from pipeline_lib.types import Problem

MAX_GOLD_CHARS = 1000
OWN_COLUMNS = ColumnsConfig()

Rows = Iterator[Row | BadRow]
Parsed = tuple[str, str, dict[str, str]] | BadRow
ExtractGold = Callable[[str], str | None]
Parse = Callable[[Row], Parsed]


def load_problems(
    dataset: str,
    split: str,
    *,
    path: str | Path | None = None,
    on_bad_row: Literal["skip", "refuse"] = "skip",
    extract_gold: ExtractGold = lambda _: None,
    columns: ColumnsConfig = OWN_COLUMNS,
    name: str | None = None,
) -> ProblemPool:
    """One split of a dataset, no question twice, and with the train split the validation split that stands beside it.

    Args:
        dataset: ``tiny-word``, ``tiny-algebra`` (also with ``@scale``), ``gsm8k``, ``math`` or ``file``.
        split: ``train`` or ``test``; what else the files or the tiny worlds hold.
        path: a local file or folder, see `find_files`; ``hub:owner/name`` for another hub dataset of
            the same columns; None asks the hub.
        on_bad_row: collect bad rows, or stop at the first one.
        extract_gold: finds the final answer in a worked solution; only ``file`` needs it, since it
            says nothing about how its solutions end.
        columns: where the rows keep question and answer, if not in the dataset's own columns.
        name: how problem ids and reports call the set; None: as the dataset.

    Raises:
        ProblemsError: nothing to read, no usable row, or a bad row under ``refuse``.
        ConfigError: no dataset is called so.
    """
    known = format_of(dataset).name
    if is_tiny(dataset):
        validation = ProblemPool(f"{dataset}/validation", GeneratedProblems(dataset, "validation"))
        generated = GeneratedProblems(dataset, split)
        return ProblemPool(f"{dataset}/{split}", generated, validation=validation if split == "train" else None)
    parse = _parser(known, columns, extract_gold)

    def read(rows: Rows, split: str) -> ProblemPool:
        pool = _read(rows, parse, f"{name or known}/{split}", known, refuses=on_bad_row == "refuse")
        if not len(pool):
            why = f"the first of {len(pool.skipped)} bad rows: {pool.skipped[0].reason}" if pool.skipped else None
            raise ProblemsError(f"{path or 'hub'}: no usable problem for {pool.name}; {why or 'there are no rows'}")
        return pool

    rows, validation_rows = _rows(known, split, path)
    pool = read(rows, split)
    return pool if validation_rows is None else pool.with_validation(read(validation_rows, "validation"))


def worked_solutions(
    problems: Sequence[Problem], *, path: str | Path | None, columns: ColumnsConfig, mark: AnswerMark
) -> list[str]:
    """The solution of each problem as its row has it; of a row with the answer alone, that, announced.

    Args:
        problems: of one split, as `load_problems` read it.
        path: where it read them.
        columns: where the rows keep their answers.
        mark: how an answer alone is announced.

    Raises:
        ProblemsError: the rows cannot be read any more.
    """
    dataset, split = problems[0].dataset, problems[0].problem_id.split("/")[1]
    numbers = [int(problem.problem_id.rpartition("/")[2]) for problem in problems]
    if is_tiny(dataset):
        return ["\n".join(make_worked_problem(dataset, split, number).lines) for number in numbers]
    wanted, rows = set(numbers), _rows(dataset, split, path)[0]
    found = {number: row for number, row in enumerate(rows) if number in wanted and isinstance(row, Row)}
    return [_solution(found[n], problem, columns, mark) for n, problem in zip(numbers, problems, strict=True)]


def _solution(row: Row, problem: Problem, columns: ColumnsConfig, mark: AnswerMark) -> str:
    """What a row says about its answer; GSM8K's notes for calculators are left out."""
    named = text_of(row, _column(row, columns.answer, "answer"))
    whole = text_of(row, "solution") if problem.dataset == "math" else named
    text = named if isinstance(whole, BadRow) else whole
    if isinstance(text, BadRow) or text == problem.answer:
        return f"#### {problem.answer}" if mark == "hashes" else rf"\boxed{{{problem.answer}}}"
    return re.sub("<<[^<>]*>>", "", text)


def _read(rows: Rows, parse: Parse, name: str, dataset: str, *, refuses: bool) -> ProblemPool:
    """The pool called `name`, of all rows that hold a problem and none twice."""
    problems: list[Problem] = []
    skipped: list[BadRow] = []
    places: list[tuple[str, int]] = []
    repeats = Repeats()
    for index, row in enumerate(rows):
        parsed = row if isinstance(row, BadRow) else parse(row)
        if isinstance(parsed, BadRow):
            if refuses:
                raise ProblemsError(f"{parsed.reason} (or set problems.on_bad_row=skip)")
            skipped.append(parsed)
            continue
        question, answer, metadata = parsed
        assert isinstance(row, Row)  # what was parsed is one
        if repeats.is_new(row, question, answer):
            problems.append(Problem(f"{name}/{index:05d}", question, answer, dataset, metadata))
            places.append((row.file, row.row))
    return ProblemPool(name, tuple(problems), tuple(skipped), left_out=tuple(repeats.describe(name)), places=places)


def _rows(dataset: str, split: str, path: str | Path | None) -> tuple[Rows, Rows | None]:
    """The rows of a split, and with train those of the validation split that stands beside it, if one does."""
    if path is not None and not str(path).startswith("hub:"):
        local = Path(path).expanduser()
        files = find_files(local, split)
        validation = find_validation(local) if split == "train" else []
        return _rows_of(files), _rows_of(validation) if validation else None
    name = hub_name(dataset, split, None if path is None else str(path))
    if name is None:
        raise ProblemsError(f"{dataset}/{split} is not on the hub; set problems.path to a file or folder that holds it")
    splits = load_hub(name, split)
    has_validation = split == "train" and "validation" in splits
    return hub_rows(name, splits, split), hub_rows(name, splits, "validation") if has_validation else None


def _rows_of(files: list[Path]) -> Rows:
    return (row for file in files for row in read_rows(file))


def _parser(dataset: str, columns: ColumnsConfig, extract_gold: ExtractGold) -> Parse:
    """From a row of the dataset to its problem."""
    own_question = "problem" if dataset == "math" else "question"

    def parse(row: Row) -> Parsed:
        question = text_of(row, _column(row, columns.question, own_question))
        if isinstance(question, BadRow):
            return question
        answer = _column(row, columns.answer, "answer")
        match dataset:
            case "gsm8k":
                return _parse_gsm8k(row, question, answer)
            case "math":
                return _parse_math(row, question, answer)
        return _parse_file(row, question, answer, extract_gold)

    return parse


def _column(row: Row, mapped: str | None, own: str) -> str:
    """Where a row keeps a value: the column that the user named, or the dataset's own where only that one is there."""
    return own if mapped is None or (row.get(mapped) is None and row.get(own) is not None) else mapped


def _parse_gsm8k(row: Row, question: str, field: str) -> Parsed:
    solution = text_of(row, field)
    if isinstance(solution, BadRow):
        return solution
    gold = gold_after_hashes(solution)
    if gold is None:
        return row.bad(field, "it does not end in `#### ` and one number; mend that line or drop the row")
    return question, gold, {}


def _parse_math(row: Row, question: str, field: str) -> Parsed:
    if is_blank(row.get(field)):
        solution = text_of(row, "solution")
        gold = solution if isinstance(solution, BadRow) else gold_in_box(solution)
    else:
        gold = text_of(row, field)
    if gold is None:
        return row.bad("solution", r"no gold: its last \boxed is missing, empty or unclosed; drop the row")
    if isinstance(gold, BadRow):
        return gold
    named = {"level": row.values.get("level"), "subject": row.values.get("subject", row.values.get("type"))}
    metadata = {key: str(value).removeprefix("Level ") for key, value in named.items() if value is not None}
    return question, gold, metadata


def _parse_file(row: Row, question: str, field: str, extract_gold: ExtractGold) -> Parsed:
    answer = text_of(row, field)
    if isinstance(answer, BadRow):
        return answer
    gold = extract_gold(answer)
    if gold is None and not re.search(r"\n|####|\\boxed", answer):
        gold = answer  # the answer alone; a mark with nothing behind it is a solution cut short
    if not gold or len(gold) > MAX_GOLD_CHARS:
        return row.bad(field, "no final answer; write it alone, or end the solution with `#### answer`")
    return question, gold, {}
