import json
import math
import runpy
import sys
from pathlib import Path

import pytest
from benchmarks.measuring import Cost, Figure, clock_for, in_turns, paired_speedup, speedup
from benchmarks.search_dials import CURRICULUM, DIALS, FRESH, Yield, measure, table
from benchmarks.search_throughput import throughput_figure
from benchmarks.steps import step_figures

from deployments.presets import tiny
from pipeline_lib.config import SearchConfig, apply_overrides
from pipeline_lib.policy.protocol import SampleResult
from pipeline_lib.policy.scripted import CharCodec, ScriptedPolicy
from pipeline_lib.types import Problem

FOLDER = Path(__file__).parent / "benchmarks"


def test_a_speedup_compares_the_best_turns_by_the_chosen_clock():
    fast = [Cost(10, 1, 1), Cost(10, 2, 1), Cost(10, 1, 1)]
    slow = [Cost(10, 4, 3), Cost(10, 4, 3), Cost(20, 4, 3)]
    figure = speedup("a.b", fast, slow, clock="wall", target=2.0, labels=("f", "s"))
    assert figure.details["wall_ratios"] == [4, 2, 2]
    assert figure.details["cpu_ratios"] == [3, 3, 1.5]
    assert figure.value == 10 / 5
    assert figure.is_met
    by_cpu = speedup("a.b", fast, slow, clock="cpu", target=4.0, labels=("f", "s"))
    assert by_cpu.value == 10 / (20 / 3)
    assert by_cpu.is_met is False


def test_pairs_count_by_their_median_so_that_one_lucky_turn_decides_nothing():
    fast, slow = [Cost(10, wall, wall) for wall in (1, 5, 10, 10)], [Cost(10, 10, 10)] * 4
    figure = paired_speedup("a.b", fast, slow, clock="wall", target=2.0, labels=("f", "s"))
    assert figure.value == 1.5
    assert not figure.is_met
    assert figure.details["quartiles"] == [1, 4]
    assert speedup("a.b", fast, slow, clock="wall", target=2.0, labels=("f", "s")).value == 10


def test_none_always_comes_first_where_turns_alternate():
    order = []
    works = {name: lambda turn, name=name: order.append(name) or 1.0 for name in "ab"}
    in_turns(works, rounds=3, alternating=True)
    assert "".join(order) == "abbaab"


def test_a_shared_core_is_noticed():
    assert clock_for([Cost(1, 10, 9.5)]) == "wall"
    assert clock_for([Cost(1, 10, 5), Cost(1, 10, 9.9), Cost(1, 10, 8)]) == "cpu"


def test_targets_are_bounds_from_either_side():
    assert Figure("a", 0.1, 0.1, at_least=False).is_met
    assert not Figure("a", 0.2, 0.1, at_least=False).is_met
    assert Figure("a", 5.0).is_met is None


class Clock:
    """Stands in for `time`: only what is added passes."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter


class TimedPolicy(ScriptedPolicy):
    """Takes so many seconds of `clock` per answer."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__(lambda prompt, prefix, seed: "1\n#### 2", CharCodec(), capacity=8)
        self._clock, self._seconds = clock, seconds

    def poll(self) -> list[SampleResult]:
        results = super().poll()
        self._clock.now += self._seconds * len(results)
        return results


def test_sides_that_run_abreast_are_charged_for_their_own_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("benchmarks.measuring.time", clock)
    slow, fast = TimedPolicy(clock, 4.0), TimedPolicy(clock, 1.0)
    problems = [Problem(f"p{i}", f"{i}?", "2", "gsm8k") for i in range(6)]
    config = SearchConfig(num_simulations=8)
    figure, trees, stats = throughput_figure("a.b", slow, fast, problems, config, target=1.0)
    assert len(trees) == len(problems)
    assert figure.details["rollouts"] == stats.num_rollouts == 48
    assert figure.details["tokens_saved_by_prefixes"] == 0
    assert fast.num_in_flight == slow.num_in_flight == 0
    assert figure.value == 0.25
    assert figure.is_met is False


@pytest.mark.slow
def test_step_splitting_is_measured_on_two_kinds_of_tokenizers():
    rate, slowdown = step_figures(num_rollouts=6, rounds=1)
    assert (rate.name, slowdown.name) == ("steps.rollouts_per_s", "steps.long_vs_short")
    assert rate.value == min(rate.details["byte_level"], rate.details["byte_fallback"]) > 0
    assert 0 < slowdown.value < math.inf


@pytest.mark.slow
def test_search_and_training_are_measured_on_the_tiny_preset(monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # the script replaces the first entry
    script = runpy.run_path(str(FOLDER / "__main__.py"))
    config = script["tiny"]()
    config = config.model_copy(update={"search": config.search.model_copy(update={"num_simulations": 8})})
    figures = script["library_figures"](config, num_problems=12, rounds=1, num_compared=4)
    report = json.loads(json.dumps(script["as_json"](figures, 1.0)))
    values = {figure.name: figure.value for figure in figures}
    assert {name: report[name] for name in values} == values
    assert list(values) == [
        "search.throughput_vs_raw",
        "search.speedup_vs_sequential",
        "search.speedup_vs_lockstep",
        "search.tokens_kept_share",
        "policy.batch_variance_share",
        "train.speedup_vs_per_step",
        "train.speedup_vs_per_step_unbatched",
        "train.speedup_vs_per_step_tiny",
        "train.speedup_vs_per_step_tiny_unbatched",
        "train.tokens_vs_unique",
    ]
    assert all(math.isfinite(value) for value in values.values())
    assert values["search.tokens_kept_share"] >= 0.98
    assert values["policy.batch_variance_share"] == 0
    assert report["details"]["train.speedup_vs_per_step"]["gradient_error"] <= 1e-5


def test_the_dials_of_the_search_are_switched_alone_on_the_same_problems():
    small = ["policy.backend=scripted", "problems.num_problems=12", "search.num_simulations=8"]
    found = dict(measure(apply_overrides(tiny(), small), 0))
    assert list(found) == [*DIALS, FRESH, CURRICULUM]
    assert {one.problems for one in found.values()} == {12}
    plain, stopped, spent = (found[name] for name in ("as it is", "stop_after_equal=4", "… spend_saved=undecided"))
    assert stopped.tokens < spent.tokens <= 1.1 * plain.tokens
    assert found[CURRICULUM].informative >= found[FRESH].informative
    assert table({name: [one] for name, one in found.items()}).row_count == len(found)
    assert Yield(2000, 9, 4, 6).per_1000_tokens() == {"informative": 2, "scored_steps": 3}
