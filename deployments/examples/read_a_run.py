"""A finished run as data frames: one row per tree, and one row per step with its score and its weight.

``python -m deployments.examples.read_a_run [RUN_ID]`` reads the run, the latest if none is named, of the home that
``COPPICE_HOME`` names, and prints a few rows. In a notebook: ``trees, steps = read_iteration(1)``.
"""

import sys

import numpy as np
import pandas as pd
import rich
from rich.text import Text

from pipeline_lib.config import Settings
from pipeline_lib.tracking import load_run
from pipeline_lib.training.batches.examples import build_examples
from pipeline_lib.types import Float64Array, Outcome, SearchTree
from tasks.score import load_scores
from tasks.search import load_trees


def read_iteration(index: int, run_id: str | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trees of an iteration, and their steps; iterations that search count from 1."""
    config, result = load_run(Settings(), run_id)  # from MLflow: settings, and the records with references to the store
    record = result.records[index]
    shards = tuple(ref for name, ref in record.refs.items() if name.partition("/")[0] == "search")  # one or more
    trees, scores = load_trees(shards), load_scores(record.refs["score"])
    weights = {example.tree.problem_id: example.weights for example in build_examples(trees, scores, config.train)}
    steps = [
        steps_frame(tree, score, weights.get(tree.problem_id, np.zeros(tree.num_nodes)))
        for tree, score in zip(trees, scores, strict=True)
    ]
    return pd.DataFrame([tree_row(tree) for tree in trees]), pd.concat(steps, ignore_index=True)


def tree_row(tree: SearchTree) -> dict[str, object]:
    """One tree: its rollouts, the share of right ones, its steps, and whether it carries signal."""
    counts = {"rollouts": tree.num_rollouts, "right": tree.values[0], "steps": tree.num_nodes - 1}
    return {"problem_id": tree.problem_id, **counts, "informative": tree.is_informative}


def steps_frame(tree: SearchTree, scores: Float64Array, weights: Float64Array) -> pd.DataFrame:
    """The steps of one tree, the root left out; training multiplies the log-likelihood of a step by its weight."""
    columns = {"parent": tree.parents, "depth": tree.depths, "visits": tree.visits, "value": tree.values}
    columns |= {"score": scores, "weight": weights}
    outcomes, texts = [Outcome(code).name for code in tree.outcomes], [step.strip() for step in tree.steps]
    frame = pd.DataFrame({"problem_id": tree.problem_id, **columns, "outcome": outcomes, "step": texts})
    return frame.iloc[1:]


def main() -> None:
    """Prints the first trees of iteration 1, and its best and its worst steps."""
    trees, steps = read_iteration(1, *sys.argv[1:2])
    shown = steps[["problem_id", "visits", "value", "score", "weight", "step"]]
    for frame in (trees.head(), shown.nlargest(5, "score"), shown.nsmallest(5, "score")):
        rich.print(Text(frame.round(2).to_string(index=False, max_colwidth=40) + "\n"))


if __name__ == "__main__":
    main()
