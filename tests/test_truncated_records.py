"""What a limit cut off: in keys, old files, advice and a whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cutoff_fixtures import POLICY, REF, RIGHT_AND_ON, RULES, audit, evaluated, searched_one
from record_fixtures import make_record
from run_fixtures import SCRIPTED, small_config
from search_fixtures import as_dicts, babble, make_problems, search

from pipeline_lib.config import (
    PipelineConfig,
    apply_overrides,
)
from pipeline_lib.evaluation import read_predictions, write_predictions
from pipeline_lib.report.signatures import unusable_answers
from pipeline_lib.search import read_trees_parquet, write_trees_parquet
from pipeline_lib.search.tree_files import LATER_COLUMNS
from pipeline_lib.types import EvalReport


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
