"""What a limit cut off: one rule for search and evaluation, and a limit that is known by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from record_fixtures import make_record
from run_fixtures import SCRIPTED, small_config
from search_fixtures import LateGrader, UnorderedPolicy, as_dicts, babble, make_problems, search

from pipeline_lib.config import (
    AuditConfig,
    ConfigError,
    Cutoff,
    EvaluationConfig,
    PipelineConfig,
    ScoreConfig,
    apply_overrides,
)
from pipeline_lib.evaluation import Prediction, evaluate, read_predictions, write_predictions
from pipeline_lib.policy import FinishReason, SampleRequest, SampleResult
from pipeline_lib.report.signatures import unusable_answers
from pipeline_lib.score import score_tree
from pipeline_lib.score.score_audit import audit_scores
from pipeline_lib.search import read_trees_parquet, write_trees_parquet
from pipeline_lib.search.tree_files import LATER_COLUMNS
from pipeline_lib.training.batches.packing import pack_example
from pipeline_lib.types import ROOT, AuditReport, EvalReport, Outcome, PolicyRef, Ref, SearchTree, TrainingExample

RULES = ("wrong", "grade", "ignore")
REF = Ref(uri="any/1", sha256="0" * 64, num_rows=1, schema_version=1)
POLICY = PolicyRef(policy_id="p", base_model="tiny", iteration=0)


class FullContext(UnorderedPolicy):
    """Its context holds `room` tokens beside the prompt."""

    def __init__(self, text: str, room: int) -> None:
        super().__init__(lambda prefix, seed: text)
        self._room = room

    def _answer(self, request: SampleRequest) -> SampleResult:
        result = super()._answer(request)
        if len(result.token_ids) <= self._room:
            return result
        return SampleResult(request.request_id, result.token_ids[: self._room], FinishReason.LENGTH)


def searched_one(text: str, truncated: str = "wrong", room: int = 99, **limits: object) -> SearchTree:
    trees, _, _ = search(
        babble, make_problems(1), truncated=truncated, policy=FullContext(text, room), num_simulations=1, **limits
    )
    return trees["letters/train/00000"]


# --- Which limit it was ---

CUTS = [
    ({"max_step_tokens": 3}, "step", "search.max_step_tokens"),
    ({"max_depth": 2}, "depth", "search.max_depth"),
    ({"max_new_tokens": 6}, "tokens", "search.max_new_tokens"),
    ({"room": 6}, "context", "policy.max_context_tokens"),
]


@pytest.mark.parametrize(("limit", "name", "dial"), CUTS)
def test_the_limit_is_kept_with_the_tree_and_the_advice_names_its_setting(
    limit: dict[str, int], name: str, dial: str, tmp_path: Path
) -> None:
    write_trees_parquet([searched_one("ab\ncdef\n#1", **limit)], tmp_path / "trees.parquet")
    [tree] = read_trees_parquet(tmp_path / "trees.parquet")
    assert [Cutoff(number).name.lower() for number in tree.cutoffs if number] == [name]
    report = audit([tree])
    assert report.cutoffs == {name: 1}
    assert (report.truncated_share, report.passed) == (1, False)
    assert report.advice == f"raise {dial}, or take a model that ends its answers"


def test_the_first_limit_that_is_passed_is_the_one_that_is_kept() -> None:
    both = searched_one("ab\ncdef\n#1", max_step_tokens=3, max_depth=2)
    assert [Cutoff(number) for number in both.cutoffs if number] == [Cutoff.STEP]
    assert [
        Cutoff(number) for number in searched_one("ab\nc\ndefgh", max_step_tokens=3, max_depth=2).cutoffs if number
    ] == [Cutoff.DEPTH]


def audit(trees: Sequence[SearchTree]) -> AuditReport:
    return audit_scores(trees, [score_tree(tree, ScoreConfig()) for tree in trees], AuditConfig())


def test_the_advice_names_the_limit_that_cut_off_most() -> None:
    deep = [searched_one("ab\ncdef\n#1", max_depth=1) for _ in range(2)]
    long = searched_one("ab\ncdef\n#1", max_new_tokens=6)
    assert audit([*deep, long]).cutoffs == {"depth": 2, "tokens": 1}
    assert audit([*deep, long]).advice.startswith("raise search.max_depth,")


# --- One rule, in search and in evaluation ---

RIGHT_AND_ON = "#1" + " " * 9  # the right answer, and then more than there is room for


def evaluated(
    truncated: str, *answers: str, max_new_tokens: int = 6, **config: object
) -> tuple[EvalReport, list[Prediction]]:
    texts = {f"q{i}": text for i, text in enumerate(answers)}
    policy = UnorderedPolicy(lambda prompt, seed: texts[prompt.partition("?")[0]])
    return evaluate(
        make_problems(len(answers)),
        policy,
        LateGrader(),
        split="test",
        config=EvaluationConfig.model_validate({"max_new_tokens": max_new_tokens, **config}),
        seed=0,
        extract=lambda text: text.rpartition("#")[2].strip() or None,
        truncated=truncated,
    )


@pytest.mark.parametrize(
    ("truncated", "visits", "reward", "counted", "num_correct"),
    [("wrong", 1, 0, 2, 1), ("grade", 1, 1, 2, 2), ("ignore", 0, 0, 1, 1)],
)
def test_search_and_evaluation_treat_what_was_cut_off_alike(
    truncated: str, visits: int, reward: int, counted: int, num_correct: int
) -> None:
    tree = searched_one(RIGHT_AND_ON, truncated, max_new_tokens=6)
    assert (tree.num_rollouts, tree.value_sums[ROOT], tree.num_simulations) == (visits, reward, 1)
    assert audit([tree]).cutoffs == {"tokens": 1}
    report, predictions = evaluated(truncated, RIGHT_AND_ON, "#1")
    assert (report.num_problems, report.num_correct, report.num_truncated) == (2, num_correct, 1)
    assert (report.num_ignored, report.cutoffs) == (2 - counted, {"tokens": 1})
    assert report.accuracy == num_correct / counted
    assert (report.num_wrong, report.num_unparsed) == (counted - num_correct, 0)
    assert [p.cutoff for p in predictions] == ["tokens", None]


@pytest.mark.parametrize("truncated", RULES)
def test_a_whole_answer_is_the_same_under_every_rule(truncated: str) -> None:
    problems = make_problems(6)
    limits = {"max_depth": 99, "max_new_tokens": 200, "max_step_tokens": 200}
    assert as_dicts(search(babble, problems, truncated=truncated, **limits)[0]) == as_dicts(
        search(babble, problems, **limits)[0]
    )
    assert evaluated(truncated, "#1", "#2", "ab") == evaluated("wrong", "#1", "#2", "ab")


def test_a_context_that_is_full_is_named_in_evaluations_too() -> None:
    policy = FullContext(RIGHT_AND_ON, room=4)
    report, _ = evaluate(
        make_problems(2),
        policy,
        LateGrader(),
        split="test",
        config=EvaluationConfig(),
        seed=0,
        extract=lambda text: None,
    )
    assert report.cutoffs == {"context": 2}


def test_samples_that_are_ignored_are_left_out_of_every_figure() -> None:
    """Of the first problem's samples two are cut off; of the second's all."""
    samples = {"q0": iter(["#1", RIGHT_AND_ON, RIGHT_AND_ON, "#1", "#2"]), "q1": iter(["#1", *[RIGHT_AND_ON] * 4])}

    def run(truncated: str) -> EvalReport:
        given = {name: list(texts) for name, texts in plans.items()}
        policy = UnorderedPolicy(lambda prompt, seed: given[prompt.partition("?")[0]].pop(0), capacity=1)
        config = EvaluationConfig(max_new_tokens=6, num_samples=4, pass_k=(1, 2, 4))
        return evaluate(
            make_problems(2), policy, LateGrader(), split="test", config=config, seed=0,
            extract=lambda text: text.rpartition("#")[2].strip() or None, truncated=truncated,
        )[0]  # fmt: skip

    plans = {name: list(texts) for name, texts in samples.items()}
    assert run("ignore").sampled == pytest.approx({"mean": 0.5, "avg@4": 0.5, "maj@4": 1, "pass@1": 0.5, "pass@2": 1})
    assert run("wrong").sampled["avg@4"] == pytest.approx((1 / 4 + 0) / 2)
    assert run("wrong").sampled["maj@4"] == 0.5  # what was not given has no vote
    assert run("grade").sampled["avg@4"] == pytest.approx((3 / 4 + 1) / 2)


def test_nothing_left_to_count_is_refused_with_the_setting_to_raise() -> None:
    with pytest.raises(
        ConfigError, match=r"^letters test: all 2 answers were cut off, and truncated=ignore leaves none to "
    ):
        evaluated("ignore", RIGHT_AND_ON, RIGHT_AND_ON)
    with pytest.raises(ConfigError, match=r"raise evaluation\.max_new_tokens$"):
        evaluated("ignore", RIGHT_AND_ON)


# --- What is ignored in a search ---


def test_an_ignored_rollout_is_spent_and_leaves_no_trace_but_its_number() -> None:
    problems = make_problems(8)
    limits = {"num_simulations": 24, "max_depth": 3}
    ignoring, stats, _ = search(babble, problems, truncated="ignore", **limits)
    for tree in ignoring.values():
        assert tree.num_simulations == 24
        assert not (tree.outcomes == Outcome.TRUNCATED).any()
        assert tree.visits[ROOT] == tree.visits[tree.parents == ROOT].sum()
    assert sum(sum(tree.ignored) for tree in ignoring.values()) > 0
    assert stats.num_rollouts == sum(tree.num_rollouts for tree in ignoring.values()) < 8 * 24
    for capacity, arrival in ((1, 1), (64, 2)):  # the order in which rollouts end changes nothing
        again = search(babble, problems, truncated="ignore", capacity=capacity, arrival=arrival, **limits)[0]
        assert as_dicts(again) == as_dicts(ignoring)


def test_a_search_of_which_all_is_ignored_ends() -> None:
    trees, stats, policy = search(lambda prefix, seed: "ab\n" * 9, make_problems(2), truncated="ignore", max_depth=2)
    assert [(tree.num_nodes, tree.ignored) for tree in trees.values()] == [(1, (0, 0, 16, 0, 0))] * 2
    assert (stats.num_rollouts, len(policy.requests)) == (0, 32)
    report = audit(list(trees.values()))
    assert (report.truncated_share, report.cutoffs, report.passed) == (1, {"depth": 32}, False)
    assert report.advice.startswith("raise search.max_depth,")


@pytest.mark.parametrize("truncated", RULES)
def test_a_continued_search_equals_an_uninterrupted_one_under_every_rule(truncated: str) -> None:
    problems = make_problems(6)
    limits = {"parallel_simulations": 1, "max_depth": 3}
    half = search(babble, problems, truncated=truncated, num_simulations=8, **limits)[0]
    whole = search(babble, problems, truncated=truncated, num_simulations=16, **limits)[0]
    continued = search(babble, problems, truncated=truncated, num_simulations=16, resume=half, **limits)[0]
    assert as_dicts(continued) == as_dicts(whole)


# --- What is graded in a search ---


def test_a_cut_answer_and_an_ended_one_of_the_same_text_stay_apart_and_only_one_teaches_the_end() -> None:
    answers = iter(["#1\n", "#1\nab"])
    trees, _, _ = search(
        lambda prefix, seed: next(answers), make_problems(1), truncated="grade", num_simulations=2, max_depth=1,
        parallel_simulations=1,
    )  # fmt: skip
    tree = trees["letters/train/00000"]
    assert list(zip(tree.outcomes.tolist(), tree.cutoffs.tolist(), strict=True))[1:] == [
        (Outcome.CORRECT, Cutoff.NONE),
        (Outcome.CORRECT, Cutoff.DEPTH),
    ]
    packed = pack_example(TrainingExample(tree, np.array([0.0, 1.0, 1.0])), eos_token_id=7)
    assert (packed.targets == 7).sum() == 1
    report = audit([tree])
    assert (report.rollouts["correct"], report.truncated_share, report.cutoffs) == (2, 0, {"depth": 1})


def test_graded_rollouts_without_an_answer_are_laid_to_the_limit_that_cut_them_off() -> None:
    report = audit([searched_one("ab\ncd\n#1", "grade", max_depth=2)])
    assert (report.rollouts["unparsed"], report.truncated_share) == (1, 0)
    assert report.advice.startswith("raise search.max_depth,")


# --- Keys, old files, advice ---


def keys(truncated: str) -> tuple[str, str, str]:
    from tasks import evaluate as evaluation
    from tasks import search as searching

    config = apply_overrides(PipelineConfig(), [f"truncated={truncated}"])
    searched = searching.search_shard.entry(
        config=config, problems=REF, policy=POLICY, iteration=1, shard=0, earlier=()
    )
    asked = {"problems": REF, "policy": POLICY, "split": "test", "name": "any"}
    evaluated = evaluation.evaluate_policy.entry(config=config, **asked)
    return searched.uri, evaluated.uri, evaluation._yardstick(config, REF, "tiny-word")


def test_the_rule_is_in_the_key_where_it_changes_what_0_1_0_did() -> None:
    from tasks import evaluate as evaluation
    from tasks import search as searching

    config = PipelineConfig()
    assert config.truncated == "wrong"
    run = {"config": config, "problems": REF, "policy": POLICY}
    assert "truncated" not in searching._spec(**run, iteration=1, earlier=())
    graded = {**run, "config": apply_overrides(config, ["truncated=grade"])}
    assert "truncated" not in evaluation._spec(**graded, split="test", name="any")
    assert all(len(set(column)) == 3 for column in zip(*map(keys, RULES), strict=True))


def test_trees_and_predictions_of_0_1_0_are_read(tmp_path: Path) -> None:
    trees = list(search(babble, make_problems(4), max_depth=3)[0].values())
    path = tmp_path / "trees.parquet"
    write_trees_parquet(trees, path)
    pq.write_table(pq.read_table(path).drop_columns(list(LATER_COLUMNS)), path)
    old = read_trees_parquet(path)
    assert [tree.num_rollouts for tree in old] == [tree.num_rollouts for tree in trees]
    assert all(not tree.cutoffs.any() and len(tree.cutoffs) == tree.num_nodes for tree in old)
    report = audit(old)
    assert (report.cutoffs, report.truncated_share) == ({}, audit(trees).truncated_share)
    on = {"num_simulations": 24, "max_depth": 3}
    went_on = [
        as_dicts(search(babble, make_problems(4), resume={t.problem_id: t for t in ts}, **on)[0]) for ts in (old, trees)
    ]
    assert all(one | {"cutoffs": []} == other | {"cutoffs": []} for one, other in zip(*went_on, strict=True))

    _, predictions = evaluated("wrong", RIGHT_AND_ON, "#1")
    write_predictions(predictions, tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet") == predictions
    pq.write_table(
        pq.read_table(tmp_path / "p.parquet").drop_columns(["cutoff", "is_ignored"]), tmp_path / "old.parquet"
    )
    assert [(p.truncated, p.cutoff, p.is_ignored) for p in read_predictions(tmp_path / "old.parquet")] == [
        (True, None, False),
        (False, None, False),
    ]


def test_a_search_of_0_1_0_that_counted_failures_as_wrong_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import search as searching

    monkeypatch.setenv("COPPICE_HOME", str(tmp_path))
    arguments = {
        "config": PipelineConfig(),
        "problems": REF,
        "policy": POLICY,
        "iteration": 1,
        "shard": 0,
        "earlier": (),
    }
    entry = searching.search_shard.entry(**arguments)
    for observed, holds in (({"num_errors": 0.0}, True), ({"num_errors": 2.0}, False), ({}, True)):
        entry.commit(1, observed)
        assert searching.search_shard._is_done(entry, arguments) is holds
    entry.commit(1, {"num_errors": 2.0, "num_redrawn": 2.0})
    assert searching.search_shard._is_done(entry, arguments)


def test_the_page_and_the_closing_lines_name_the_settings_of_the_limits() -> None:
    record = make_record(1)
    cut = [
        e.model_copy(update={"num_truncated": 40, "cutoffs": {"context": 30, "tokens": 10}}) for e in record.evaluations
    ]
    found = unusable_answers([record.model_copy(update={"evaluations": tuple(cut)})])
    assert found is not None
    assert found.advice.startswith(
        "Raise search.max_new_tokens and policy.max_context_tokens where answers are cut off;"
    )


def test_a_problem_that_either_policy_has_ignored_is_in_no_paired_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.evaluate import PREDICTIONS
    from tasks.record import _paired_test, _paired_tests
    from tasks.runtime.stage import open_store

    monkeypatch.setenv("COPPICE_HOME", str(tmp_path))

    def kept(name: str, *answers: str) -> EvalReport:
        report, predictions = evaluated("ignore", *answers)
        entry = open_store().entry("evaluate-policy", {"name": name}, [], version=1)
        write_predictions(predictions, entry.path / PREDICTIONS)
        return report.model_copy(update={"predictions": entry.commit(len(answers))})

    before = kept("before", "#2", RIGHT_AND_ON, "#1", "#2")
    after = kept("after", "#1", "#1", RIGHT_AND_ON, "#2")
    test = _paired_test(before, after, "base", 0)
    assert test is not None
    assert (test.num_fixed, test.num_broken, test.difference) == (1, 0, 0.5)  # of the first and the last
    none_in_common = kept("other", RIGHT_AND_ON, "#1", RIGHT_AND_ON, RIGHT_AND_ON)  # `before` was cut off just there
    was, now = (r.model_copy(update={"split": "validation"}) for r in (before, none_in_common))
    assert _paired_tests([now], [make_record(0).model_copy(update={"evaluations": (was,)})], "letters") == ()


def test_a_problem_whose_rollouts_were_all_ignored_is_neither_right_nor_wrong() -> None:
    cut, wrong = searched_one(RIGHT_AND_ON, "ignore", max_new_tokens=6), searched_one("#2", max_new_tokens=6)
    report = audit([cut, wrong, wrong])
    assert (report.num_problems, report.num_all_wrong, report.num_all_correct, report.num_informative) == (3, 2, 0, 0)
    assert "; 2 are all wrong, 0 all right, 1 without a rollout that counts" in report.reason
    assert "that counts" not in audit([wrong]).reason


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's and Prefect's own
def test_a_whole_run_ignores_what_was_cut_off_and_its_page_says_so(new_home: Callable[[], Path]) -> None:
    from flows.self_training import self_training

    home = new_home()
    limits = ("search.max_new_tokens=60", "evaluation.max_new_tokens=60", "evaluation.num_problems=16")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("COPPICE_HOME", str(home))
    try:
        result = self_training(small_config(*SCRIPTED, *limits, "truncated=ignore", "problems.num_validation=16"))
    finally:
        monkeypatch.undo()
    audit_report = result.records[1].audit
    assert audit_report is not None
    assert audit_report.cutoffs["tokens"] == audit_report.rollouts["truncated"] > 0
    reports = [report for record in result.records for report in record.evaluations]
    assert any(report.num_ignored for report in reports)
    for report in reports:
        assert report.accuracy == report.num_correct / (report.num_problems - report.num_ignored)
    assert result.tracking_run is not None
    page = (home / "mlartifacts" / result.tracking_run / "artifacts" / "report.html").read_text(encoding="utf-8")
    assert "Answers that a limit cut off are in no accuracy" in page
    assert "they count as nothing" in " ".join(page.split())
