"""How good a policy is, and whether it is better than another."""

from pipeline_lib.evaluation.accuracy import Prediction, evaluate, read_predictions, write_predictions
from pipeline_lib.evaluation.statistics import (
    clustered_interval,
    majority_index,
    paired_difference_interval,
    paired_test,
    pass_at_k,
    wilson_interval,
)

__all__ = [
    "Prediction",
    "clustered_interval",
    "evaluate",
    "majority_index",
    "paired_difference_interval",
    "paired_test",
    "pass_at_k",
    "read_predictions",
    "wilson_interval",
    "write_predictions",
]
