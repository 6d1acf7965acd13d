r"""Datasets as problems, from the hub, from files, or made on the spot.

One idea: a dataset is a sequence of `Problem`; a list where rows were read, lazy where they are
generated, and nobody after this file can tell. A row's number is part of its problem's id, so ids do
not shift when another row is dropped.

1. ``gsm8k``: columns question and answer, which ends in ``#### n``.
2. ``math``: columns problem and solution (gold: the last ``\boxed``), or with an answer column, as
   MATH-500 has; level, type or subject become metadata. The train split has no copy on the hub since
   January 2025: the user supplies one.
3. ``file``: the user's own question and answer; the answer alone, or a solution that ends as above.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

from pipeline_lib.problems.formats import format_of, gold_after_hashes, gold_in_box
from pipeline_lib.problems.rows import BadRow, ProblemsError, Row, read_rows, text_of
from pipeline_lib.problems.splits import find_files
from pipeline_lib.problems.tiny import POOL_SIZE, is_tiny, make_problem
from pipeline_lib.types import Problem

HUB = {("gsm8k", "train"): "openai/gsm8k:main", ("gsm8k", "test"): "openai/gsm8k:main"}
HUB[("math", "test")] = "HuggingFaceH4/MATH-500"
MAX_GOLD_CHARS = 1000
HUB_PATIENCE_S = 10.0

Parsed = tuple[str, str, dict[str, str]] | BadRow
ExtractGold = Callable[[str], str | None]


class ProblemPool(Sequence[Problem]):
    """A split of a dataset, and what of it could not be used.

    Args:
        name: ``dataset/split``.
        problems: in the order of the files; lazy for the tiny worlds.
        skipped: the bad rows, in the order of the files.
        validation: a validation split of its own; None where it has to be cut from this one.
    """

    def __init__(
        self,
        name: str,
        problems: Sequence[Problem],
        skipped: tuple[BadRow, ...] = (),
        validation: Sequence[Problem] | None = None,
    ) -> None:
        self.name = name
        self.skipped = skipped
        self.validation = validation
        self._problems = problems

    def __len__(self) -> int:
        return len(self._problems)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | Sequence[Problem]:
        return self._problems[index]


class GeneratedProblems(Sequence[Problem]):
    """A tiny world's split: `POOL_SIZE` problems, each made when it is looked up."""

    def __init__(self, dataset: str, split: str) -> None:
        make_problem(dataset, split, 0)  # an unknown name fails here, not in the first draw
        self._dataset, self._split = dataset, split

    def __len__(self) -> int:
        return POOL_SIZE

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(POOL_SIZE)[index]]
        return make_problem(self._dataset, self._split, range(POOL_SIZE)[index])


def load_problems(
    dataset: str,
    split: str,
    *,
    path: str | Path | None = None,
    on_bad_row: Literal["skip", "refuse"] = "skip",
    extract_gold: ExtractGold = lambda _: None,
) -> ProblemPool:
    """One split of a dataset.

    Args:
        dataset: ``tiny-word``, ``tiny-algebra`` (also with ``@scale``), ``gsm8k``, ``math`` or ``file``.
        split: ``train`` or ``test``; what else the files or the tiny worlds hold.
        path: a local file or folder, see `find_files`; ``hub:owner/name`` for another hub dataset of
            the same columns; None asks the hub.
        on_bad_row: collect bad rows, or stop at the first one.
        extract_gold: finds the final answer in a worked solution; only ``file`` needs it, since it
            says nothing about how its solutions end.

    Raises:
        ProblemsError: nothing to read, no usable row, or a bad row under ``refuse``.
        ConfigError: no dataset is called so.
    """
    name = format_of(dataset).name
    if is_tiny(dataset):
        validation = GeneratedProblems(dataset, "validation") if split == "train" else None
        return ProblemPool(f"{dataset}/{split}", GeneratedProblems(dataset, split), validation=validation)
    problems: list[Problem] = []
    skipped: list[BadRow] = []
    for index, row in enumerate(_rows(name, split, path)):
        parsed = row if isinstance(row, BadRow) else _parse(name, row, extract_gold)
        if isinstance(parsed, BadRow):
            if on_bad_row == "refuse":
                raise ProblemsError(f"{parsed.reason} (or set problems.on_bad_row=skip)")
            skipped.append(parsed)
        else:
            question, answer, metadata = parsed
            problems.append(Problem(f"{name}/{split}/{index:05d}", question, answer, name, metadata))
    if not problems:
        why = f"the first of {len(skipped)} bad rows: {skipped[0].reason}" if skipped else "there are no rows"
        raise ProblemsError(f"{path or 'hub'}: no usable problem for {dataset}/{split}; {why}")
    return ProblemPool(f"{name}/{split}", tuple(problems), tuple(skipped))


def _parse(dataset: str, row: Row, extract_gold: ExtractGold) -> Parsed:
    match dataset:
        case "gsm8k":
            return _parse_gsm8k(row)
        case "math":
            return _parse_math(row)
    return _parse_file(row, extract_gold)


def _rows(dataset: str, split: str, path: str | Path | None) -> Iterator[Row | BadRow]:
    if path is not None and not str(path).startswith("hub:"):
        for file in find_files(Path(path).expanduser(), split):
            yield from read_rows(file)
        return
    name = str(path).removeprefix("hub:") if path else HUB.get((dataset, split))
    if name is None:
        raise ProblemsError(f"{dataset}/{split} is not on the hub; set problems.path to a file or folder that holds it")
    yield from _read_hub(name, split)


def _read_hub(name: str, split: str) -> Iterator[Row]:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
        raise ProblemsError(f"hub:{name}: expected hub:owner/name or hub:owner/name:config")
    repository, _, config = name.partition(":")
    import datasets

    try:
        with _cache_alone_unless_reached(repository):
            rows: Any = datasets.load_dataset(repository, config or None, split=split)
    except Exception as error:
        # The hub client has no common base class for "no network", "no such dataset" and "no access".
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        advice = "go online, or set problems.path to a local copy"
        raise ProblemsError(f"cannot load {repository} ({split}) from the hub: {reason}; {advice}") from None
    for number, values in enumerate(rows, start=1):
        yield Row(f"{repository} ({split})", number, values)


@contextmanager
def _cache_alone_unless_reached(repository: str) -> Iterator[None]:
    """One question to the hub; without an answer, what is in the cache has to do: else `datasets` asks for 23 s."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    before = datasets.config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(repository, timeout=HUB_PATIENCE_S)
    except HfHubHTTPError:  # it has answered; why not with the dataset, the next question will tell
        pass
    except Exception:  # of the HTTP client, which is the hub client's own choice
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _question_and_answer(row: Row) -> tuple[str, str] | BadRow:
    question, answer = text_of(row, "question"), text_of(row, "answer")
    if isinstance(question, BadRow):
        return question
    return answer if isinstance(answer, BadRow) else (question, answer)


def _parse_gsm8k(row: Row) -> Parsed:
    texts = _question_and_answer(row)
    if isinstance(texts, BadRow):
        return texts
    question, solution = texts
    gold = gold_after_hashes(solution)
    if gold is None:
        return row.bad("answer", "it does not end in `#### ` and a number; add that line or drop the row")
    return question, gold, {}


def _parse_math(row: Row) -> Parsed:
    question = text_of(row, "problem")
    if isinstance(question, BadRow):
        return question
    if row.values.get("answer") is not None:
        gold: str | BadRow | None = text_of(row, "answer")
    else:
        solution = text_of(row, "solution")
        gold = solution if isinstance(solution, BadRow) else gold_in_box(solution)
    if gold is None:
        return row.bad("solution", r"no gold: its last \boxed is missing, empty or unclosed; drop the row")
    if isinstance(gold, BadRow):
        return gold
    named = {"level": row.values.get("level"), "subject": row.values.get("subject", row.values.get("type"))}
    metadata = {key: str(value).removeprefix("Level ") for key, value in named.items() if value is not None}
    return question, gold, metadata


def _parse_file(row: Row, extract_gold: ExtractGold) -> Parsed:
    texts = _question_and_answer(row)
    if isinstance(texts, BadRow):
        return texts
    question, answer = texts
    gold = extract_gold(answer)
    if gold is None and not re.search(r"\n|####|\\boxed", answer):
        gold = answer  # the answer alone; a mark with nothing behind it is a solution cut short
    if not gold or len(gold) > MAX_GOLD_CHARS:
        return row.bad("answer", "no final answer; write it alone, or end the solution with `#### answer`")
    return question, gold, {}
