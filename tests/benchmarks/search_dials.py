"""What each dial of the search buys: informative problems and scored steps per 1,000 sampled tokens.

    python tests/benchmarks/search_dials.py --preset tiny --problems 200 --seeds 0 1 2
    python tests/benchmarks/search_dials.py --preset smollm2 --problems 100 --seeds 0 --set policy.backend=vllm

One idea: trees do not depend on each other, so what a dial makes of 1,000 tokens is what it makes at equal tokens: a
dial that saves some would spend them on more problems. Each dial is switched alone, on the same base and seeds. Seeds
are those of the problems' draw and of every rollout. No training takes place, so the curriculum looks back at rates of
the very policy that it draws for: what it gains here is the most that it can gain.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from deployments.presets import PRESETS
from pipeline_lib.config import PipelineConfig, SearchConfig, apply_overrides
from pipeline_lib.policy.protocol import Policy
from pipeline_lib.problems.draw import DrawnProblems, draw_problems, prefer_informative
from pipeline_lib.problems.run_sets import training_pool
from pipeline_lib.score import score_tree
from pipeline_lib.search import search_trees
from pipeline_lib.search.simulation import extra_simulations
from pipeline_lib.types import Problem, SearchTree
from tasks.runtime.engines import engines, open_policy
from tasks.runtime.graders import open_grader
from tasks.runtime.policies import base_policy

DIALS: dict[str, dict[str, object]] = {
    "as it is": {},
    "selection=frontier": {"selection": "frontier"},
    "selection=entropy": {"selection": "entropy"},
    "stop_after_equal=4": {"stop_after_equal": 4},
    "… spend_saved=undecided": {"stop_after_equal": 4, "spend_saved": "undecided"},
    "stop_after_equal=8": {"stop_after_equal": 8},
}
FRESH, CURRICULUM = "curriculum=uniform", "curriculum=informative"  # of a second draw


@dataclass(frozen=True, slots=True)
class Yield:
    """What some trees came to.

    Args:
        tokens: sampled.
        problems: searched.
        informative: of these, the ones with right and wrong rollouts.
        scored_steps: steps whose score is not 0.
    """

    tokens: int
    problems: int
    informative: int
    scored_steps: int

    def per_1000_tokens(self) -> dict[str, float]:
        """Informative problems and scored steps for every 1,000 tokens."""
        return {
            "informative": 1000 * self.informative / self.tokens,
            "scored_steps": 1000 * self.scored_steps / self.tokens,
        }


def yield_of(trees: Sequence[SearchTree], config: PipelineConfig) -> Yield:
    """Counts over trees."""
    return Yield(
        tokens=sum(tree.tokens_generated for tree in trees),
        problems=len(trees),
        informative=sum(tree.is_informative for tree in trees),
        scored_steps=sum(int((score_tree(tree, config.score) != 0).sum()) for tree in trees),
    )


def measure(config: PipelineConfig, seed: int) -> Iterator[tuple[str, Yield]]:
    """Every dial's yield on the problems that a run of this seed would draw first; the curriculum's on the second."""
    first, second = (_draw(config, seed, iteration) for iteration in (1, 2))
    policy = open_policy(config, base_policy(config), [*first, *second])
    plain: list[SearchTree] = []
    for name, dials in DIALS.items():
        search = config.search.model_copy(update=dials)
        trees = _trees(config, policy, first, search, seed)
        plain = plain or trees
        yield name, yield_of(trees, config)
    rates = {tree.problem_id: tree.value_sums[0] / tree.visits[0] for tree in plain if tree.visits[0]}
    for name, drawn in ((FRESH, second), (CURRICULUM, prefer_informative(second, first, rates))):
        yield name, yield_of(_trees(config, policy, drawn, config.search, seed + 1_000), config)


def _draw(config: PipelineConfig, seed: int, iteration: int) -> DrawnProblems:
    problems = config.problems
    return draw_problems(
        training_pool(config),
        problems.num_problems,
        num_validation=problems.num_validation,
        validation_seed=problems.validation_seed,
        seed=seed,
        iteration=iteration,
    )


def _trees(
    config: PipelineConfig, policy: Policy, problems: Sequence[Problem], search: SearchConfig, seed: int
) -> list[SearchTree]:
    """The trees of one search, of both passes where savings are spent."""
    trees = _pass(config, policy, problems, search, seed)
    if not search.spends_saved:
        return trees
    more = search.num_simulations + extra_simulations(trees, search)
    undecided = {tree.problem_id: tree for tree in trees if tree.is_informative}
    rest = [problem for problem in problems if problem.problem_id in undecided]
    search = search.model_copy(update={"num_simulations": more, "stop_after_equal": None})
    return [t for t in trees if not t.is_informative] + _pass(config, policy, rest, search, seed, undecided)


def _pass(
    config: PipelineConfig,
    policy: Policy,
    problems: Sequence[Problem],
    search: SearchConfig,
    seed: int,
    resume: Mapping[str, SearchTree] | None = None,
) -> list[SearchTree]:
    trees: list[SearchTree] = []
    with open_grader(config, config.problems.dataset) as grader:
        search_trees(problems, policy, grader, search, seed=seed, on_tree=trees.append, resume=resume or {})
    return trees


def table(found: Mapping[str, Sequence[Yield]]) -> Table:
    """Means over seeds, and beside each the ratio to the same draw without the dial."""
    columns = [Column("dial", no_wrap=True), "problems", "tokens", "informative", "scored steps"]
    result = Table(*columns, title="Informative problems and scored steps per 1,000 tokens")
    for name, yields in found.items():
        reference = found[FRESH if name == CURRICULUM else "as it is"]
        cells: list[str] = []
        for figure in ("informative", "scored_steps"):
            value, plain = (statistics.mean(y.per_1000_tokens()[figure] for y in of) for of in (yields, reference))
            cells.append(f"{value:.3f}  x {value / plain:.2f}")
        counts = [statistics.mean(getattr(y, count) for y in yields) for count in ("problems", "tokens")]
        result.add_row(name, *(f"{count:,.0f}" for count in counts), *cells)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--problems", type=int, default=200, metavar="N", help="problems a draw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts of every seed to this file")
    arguments = parser.parse_args()
    overrides = [f"problems.num_problems={arguments.problems}", *arguments.overrides]
    config = apply_overrides(PRESETS[arguments.preset](), overrides)
    found: dict[str, list[Yield]] = {}
    console = Console()
    for seed in arguments.seeds:
        for name, one in measure(config, seed):
            found.setdefault(name, []).append(one)
            console.print(f"seed {seed}  {name}: {one}", highlight=False, soft_wrap=True)
    engines.close()
    console.print(table(found))
    if arguments.json is not None:
        rows = {name: [_counts(one) for one in yields] for name, yields in found.items()}
        arguments.json.write_text(json.dumps({"seeds": arguments.seeds, **rows}, indent=2) + "\n", encoding="utf-8")


def _counts(one: Yield) -> dict[str, float]:
    rates = {f"{name}_per_1000_tokens": rate for name, rate in one.per_1000_tokens().items()}
    return {name: getattr(one, name) for name in Yield.__slots__} | rates


if __name__ == "__main__":
    main()
