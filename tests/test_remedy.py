"""The audit's remedy: how far the uninformative problems are searched on, and in which entry of the store that lies."""

from __future__ import annotations

import pytest
from search_fixtures import make_problems, search

from pipeline_lib.config import PipelineConfig, SearchConfig
from pipeline_lib.types import PolicyRef, Ref, SearchTree
from tasks import search as stage

REF = Ref(uri="search/1", sha256="0" * 64, num_rows=1, schema_version=1)


def config_with(budget: int | None) -> PipelineConfig:
    return PipelineConfig(search=SearchConfig(num_simulations=4, parallel_simulations=1, max_tokens_per_problem=budget))


def spec(config: PipelineConfig, *earlier: Ref) -> dict[str, object]:
    policy = PolicyRef(policy_id="p", base_model="tiny", iteration=0)
    arguments = {"config": config, "problems": REF, "policy": policy, "iteration": 1}
    found: dict[str, object] = stage._spec(**arguments, earlier=earlier)["search"]
    return found


@pytest.mark.parametrize("budget", [None, 12])
def test_the_remedy_doubles_the_tokens_of_a_problem_with_its_simulations(budget: int | None) -> None:
    config = config_with(budget)
    assert stage._search_config(config, ()) == config.search
    doubled = stage._search_config(config, (REF,))
    changes = {"num_simulations": 8, "max_tokens_per_problem": budget and 2 * budget}
    assert doubled == config.search.model_copy(update=changes)
    assert {name for name, value in spec(config, REF).items() if spec(config)[name] != value} == {
        name for name, value in changes.items() if value is not None
    }


def test_under_a_token_budget_the_remedy_adds_rollouts() -> None:
    """Five tokens a rollout: the budget of twelve ends after three, its double after five."""
    config, problems = config_with(12), make_problems(1)
    found: dict[str, SearchTree] = {}
    counts = []
    for earlier in ((), (REF,)):
        settings = stage._search_config(config, earlier).model_dump()
        found, _, _ = search(lambda prefix, seed: "ab\n#2", problems, resume=found, **settings)
        counts += [tree.num_rollouts for tree in found.values()]
    assert counts == [3, 5]
