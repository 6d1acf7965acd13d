"""The number of shards is no part of a search's result: neither of its bytes, nor of any later stage's key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_fixtures import SCRIPTED, of_content, small_config

from pipeline_lib.config import Settings
from pipeline_lib.store import Entry, Store
from pipeline_lib.store.prune import stored_entries
from pipeline_lib.tracking.history.past_runs import past_runs
from pipeline_lib.types import RunResult
from tasks.housekeeping.marks import entries_of_run, recording_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's and Prefect's own
]


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each stage ran to its end."""
    counted: Counter[str] = Counter()
    commit = Entry.commit

    def counting(self: Entry, *args: Any) -> Any:
        counted[self.uri.partition("/")[0]] += 1
        return commit(self, *args)

    monkeypatch.setattr(Entry, "commit", counting)
    return counted


def run_in(home: Path, *overrides: str) -> RunResult:
    from flows.self_training import self_training

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        return self_training(small_config(*SCRIPTED, *overrides))


def after_the_search(home: Path) -> dict[str, str]:
    return {uri: digest for uri, digest in of_content(home).items() if not uri.startswith("search-shard")}


@pytest.mark.parametrize("num_shards", [1, 3, 100])
def test_a_run_with_another_number_of_shards_computes_nothing(
    new_home: Callable[[], Path], commits: Counter[str], num_shards: int
) -> None:
    home = new_home()
    first = run_in(home)
    before = after_the_search(home)
    assert commits["search-shard"] == 2
    commits.clear()
    again = run_in(home, f"search.num_shards={num_shards}")
    of_the_run = {"record-iteration", "finish-run", "announce"}  # what names the run in MLflow
    assert set(commits) <= of_the_run
    assert after_the_search(home) == before
    assert [record.refs for record in again.records] == [record.refs for record in first.records]
    assert again.records[1].search["num_rollouts"] == first.records[1].search["num_rollouts"]
    assert again.records[1].seconds["search"] == first.records[1].seconds["search"]


def test_every_number_of_shards_gives_the_same_bytes(new_home: Callable[[], Path]) -> None:
    homes = [new_home() for _ in range(2)]
    for home, number in zip(homes, (1, 5), strict=True):
        run_in(home, f"search.num_shards={number}")
    assert after_the_search(homes[0]) == after_the_search(homes[1])


def test_the_remedy_goes_on_from_the_same_trees(new_home: Callable[[], Path], commits: Counter[str]) -> None:
    homes = [new_home() for _ in range(2)]
    few = ("audit.min_informative_share=1.0", "search.num_simulations=2")
    for home, number in zip(homes, (1, 5), strict=True):
        result = run_in(home, *few, f"search.num_shards={number}")
        assert result.records[1].audit is not None
        assert result.records[1].audit.remedied
        counts = result.records[1].search
        [entry] = [ref for name, ref in result.records[1].refs.items() if name == "search"]
        assert counts["num_rollouts"] > 16 * 2
        assert Store(home / "store").open(entry).joinpath("trees.parquet").is_file()
    assert commits["search-shard"] == 2 * (1 + 5)
    assert after_the_search(homes[0]) == after_the_search(homes[1])


def test_shards_that_were_finished_are_searched_no_more_by_another_number_of_them(
    new_home: Callable[[], Path], commits: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline_lib.search import search_trees
    from tasks import search

    whole, home = new_home(), new_home()
    run_in(whole, "search.num_shards=1")
    asked: list[list[str]] = []
    fails = {"in": 2}

    def counting(problems: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append([problem.problem_id for problem in problems])
        if len(asked) == fails["in"]:
            raise RuntimeError("the machine is gone")
        return search_trees(problems, *args, **kwargs)

    monkeypatch.setattr(search, "search_trees", counting)
    with pytest.raises(RuntimeError, match="machine is gone"):
        run_in(home, "search.num_shards=4")
    finished = asked[0]
    asked.clear()
    fails["in"] = 0
    run_in(home, "search.num_shards=3")
    again = [name for problems in asked for name in problems]
    assert len(again) == len(set(again)) == 16 - len(finished)
    assert not set(again) & set(finished)
    assert after_the_search(home) == after_the_search(whole)


def entries_of_search(home: Path) -> set[str]:
    return {uri for uri in of_content(home) if uri.startswith(("search-shard", "gather-trees"))}


def entries_of_the_run(home: Path) -> set[str]:
    settings = Settings(home=home, tracking_uri=None, store=None)
    (run,) = past_runs(settings)
    return entries_of_run(settings, run, recording_runs(list(stored_entries(settings.store_root))))


def test_what_stopped_trees_save_is_spent_alike_in_every_sharding(
    new_home: Callable[[], Path], commits: Counter[str]
) -> None:
    homes = [new_home() for _ in range(2)]
    dials = ("search.stop_after_equal=2", "search.spend_saved=undecided")
    for home, number in zip(homes, (1, 5), strict=True):
        counts = run_in(home, *dials, f"search.num_shards={number}").records[1].search
        assert 8 * 16 - 16 < counts["num_rollouts"] <= 8 * 16  # all was spent, but for what is less than one a tree
    assert commits["search-shard"] == 2 * (1 + 5)
    assert after_the_search(homes[0]) == after_the_search(homes[1])
    commits.clear()
    run_in(
        homes[0], "search.stop_after_equal=2", "search.num_shards=5"
    )  # the first pass is that of a search that drops
    assert commits["search-shard"] == 0
    run_in(homes[0], *dials)
    assert commits["search-shard"] == 0
