"""Monte Carlo tree search over reasoning steps: from problems to `SearchTree`s."""

from pipeline_lib.search.alignment import TokenTexts
from pipeline_lib.search.rollout import rollout_from_result
from pipeline_lib.search.scheduler import search_trees
from pipeline_lib.search.selection import select, ucb1_scores
from pipeline_lib.search.simulation import request_at
from pipeline_lib.search.stats import SearchStats, total_stats
from pipeline_lib.search.steps import Step, split_steps, step_rules
from pipeline_lib.search.tree import TreeBuilder
from pipeline_lib.search.tree_files import (
    TreeWriter,
    read_counts,
    read_roots,
    read_trees,
    read_trees_parquet,
    write_trees_parquet,
)

__all__ = [
    "SearchStats",
    "Step",
    "TokenTexts",
    "TreeBuilder",
    "TreeWriter",
    "read_counts",
    "read_roots",
    "read_trees",
    "read_trees_parquet",
    "request_at",
    "rollout_from_result",
    "search_trees",
    "select",
    "split_steps",
    "step_rules",
    "total_stats",
    "ucb1_scores",
    "write_trees_parquet",
]
