"""An engine's failure is no answer: it is asked again, and what then comes equals what would have come without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fault_fixtures import BURST, FaultyPolicy
from policy_fixtures import write_model
from search_fixtures import LateGrader, UnorderedPolicy, as_dicts, babble, make_problems, search

from pipeline_lib.config import EvaluationConfig, PolicyConfig, SearchConfig
from pipeline_lib.evaluation import evaluate
from pipeline_lib.policy import EngineError, Policy, SampleRequest, SamplingParams, draw_all
from pipeline_lib.policy.redraw import FEW_FAILURES, TRIES, Redraws
from pipeline_lib.policy.scripted import CharCodec, ScriptedPolicy
from pipeline_lib.search import search_trees
from pipeline_lib.types import SearchTree

CODEC = CharCodec()
FAULTS = [(0.01, 1), (0.05, 1), (0.2, 1), (0.01, BURST), (0.05, BURST), (0.2, BURST)]


def requests(count: int) -> list[SampleRequest]:
    prompt = CODEC.encode_prompt("q")
    return [SampleRequest(f"r{i}", prompt, SamplingParams(50), seed=i) for i in range(count)]


def echoing() -> ScriptedPolicy:
    return ScriptedPolicy(lambda prompt, prefix, seed: f"#### {seed % 3}", CODEC, capacity=4)


# --- Asking again ---


def test_what_failed_is_asked_again_with_its_own_seed_and_counted() -> None:
    policy = FaultyPolicy(echoing(), 0.15)
    found = draw_all(policy, requests(30), max_failed_share=1)
    assert {name: CODEC.decode(result.token_ids) for name, result in found.items()} == {
        f"r{i}": f"#### {i % 3}" for i in range(30)
    }
    again = [
        request
        for place, request in enumerate(policy.asked)
        if request.request_id in {r.request_id for r in policy.asked[:place]}
    ]
    assert len(again) == policy.num_failed == policy.stats.num_errors > 0
    assert all(request.seed == int(request.request_id[1:]) for request in again)
    assert policy.stats.num_redrawn == len({request.request_id for request in again})


def test_a_request_that_always_fails_ends_after_its_tries() -> None:
    policy = FaultyPolicy(echoing(), 1.0)
    with pytest.raises(
        EngineError, match=r"^the engine failed 3 times to answer r0, so this stage has no result; run again"
    ):
        draw_all(policy, requests(1))
    assert len(policy.asked) == TRIES


def test_failures_beyond_their_share_end_the_stage_though_each_could_be_mended() -> None:
    def failures_borne(share: float, count: int) -> int:
        policy = FaultyPolicy(echoing(), 0.3, seed=4)
        draws = Redraws(policy, num_expected=count, max_failed_share=share)
        draws.submit(requests(count))

        def drain() -> None:
            while draws.num_in_flight:
                draws.poll()

        with pytest.raises(EngineError, match=rf"of at most {count} answers, more than policy\.max_failed_share="):
            drain()
        return policy.stats.num_errors - 1

    assert failures_borne(0.05, 200) == 10
    assert failures_borne(0.05, 40) == FEW_FAILURES
    assert failures_borne(0, 40) == 0


# --- Search: the same trees, or none ---


@pytest.mark.parametrize(("share", "burst"), FAULTS)
def test_a_search_with_failures_gives_the_same_trees_or_none(share: float, burst: int) -> None:
    problems = make_problems(12)
    expected = as_dicts(search(babble, problems)[0])
    ended = set()
    for seed in range(6):
        policy = FaultyPolicy(UnorderedPolicy(babble, arrival=seed), share, burst=burst, seed=seed)
        try:
            trees, stats, _ = search(babble, problems, arrival=seed, policy=policy)
        except EngineError:
            ended.add("no result")
            continue
        assert as_dicts(trees) == expected
        assert stats.num_errors >= policy.num_failed
        ended.add("same trees, failures mended" if policy.num_failed else "same trees")
    assert "same trees, failures mended" in ended or share == 0.2


def test_by_default_a_search_bears_one_failure_in_a_hundred() -> None:
    problems = make_problems(40)

    def run(share: float) -> int:
        policy = FaultyPolicy(UnorderedPolicy(lambda prefix, seed: "ab\n#1"), share)
        stats = search_trees(problems, policy, LateGrader(), SearchConfig(), seed=0, on_tree=lambda tree: None)
        assert stats.num_rollouts == 640
        return stats.num_redrawn

    assert run(0.004) > 0
    with pytest.raises(EngineError, match=r"7 of at most 640 answers, more than policy\.max_failed_share=0\.01"):
        run(0.05)


def test_trees_handed_over_before_a_search_failed_are_right() -> None:
    problems, finished = make_problems(12), {}
    policy = FaultyPolicy(UnorderedPolicy(babble), 0.2, burst=BURST)

    def keep(tree: SearchTree) -> None:
        finished[tree.problem_id] = tree

    with pytest.raises(EngineError):
        search_trees(
            problems,
            policy,
            LateGrader(),
            SearchConfig(),
            seed=0,
            on_tree=keep,
            max_failed_share=0.15,
        )
    assert 0 < len(finished) < 12
    rest = [problem for problem in problems if problem.problem_id not in finished]
    assert as_dicts(finished | search(babble, rest)[0]) == as_dicts(search(babble, problems)[0])


# --- Evaluation: the same numbers, or none ---


@pytest.mark.parametrize(("share", "burst"), FAULTS)
def test_an_evaluation_with_failures_gives_the_same_numbers_or_none(share: float, burst: int) -> None:
    problems = make_problems(60)

    def run(policy: Policy) -> object:
        return evaluate(
            problems,
            policy,
            LateGrader(),
            split="test",
            config=EvaluationConfig(num_samples=4, sampled_problems=20),
            seed=0,
            extract=lambda text: text.rpartition("#")[2].strip() or None,
            max_failed_share=1,
        )

    expected, mended = run(echoing()), 0
    for seed in range(5):
        policy = FaultyPolicy(echoing(), share, burst=burst, seed=seed)
        try:
            found = run(policy)
        except EngineError:
            continue
        assert found == expected
        mended += policy.num_failed
    assert mended or share == 0.2


# --- A real engine ---


def test_the_transformers_engine_with_failures_gives_the_same_trees(tmp_path: Path) -> None:
    from pipeline_lib.policy.tokenizers import load_codec
    from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy

    folder, config = write_model(tmp_path / "model"), PolicyConfig(max_batch=8, max_context_tokens=128)

    def searched(share: float) -> tuple[list[dict[str, object]], int]:
        codec = load_codec(folder, config)
        engine = TransformersPolicy(folder, policy_id="p", config=config, codec=codec)
        assert engine.batch_invariant
        policy = FaultyPolicy(engine, share, burst=2)
        limits = {"num_simulations": 8, "max_new_tokens": 24}
        trees, stats, _ = search(babble, make_problems(6), policy=policy, **limits)
        engine.close()
        return as_dicts(trees), stats.num_redrawn

    plain, faulty = searched(0), searched(0.1)
    assert (plain[1], faulty[1] > 0) == (0, True)
    assert faulty[0] == plain[0]
    assert any(len(np.unique(tree["outcomes"])) > 1 for tree in plain[0])
