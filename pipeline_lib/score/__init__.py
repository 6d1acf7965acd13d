"""Relative correctness of steps (Equation 1), and the audit of an iteration's scores."""

from pipeline_lib.score.audit import audit_scores
from pipeline_lib.score.formula import relative_correctness, score_tree

__all__ = ["audit_scores", "relative_correctness", "score_tree"]
