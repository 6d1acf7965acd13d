"""Relative correctness of steps (Equation 1), and the audit of an iteration's scores."""

from pipeline_lib.score.formula import relative_correctness, score_tree
from pipeline_lib.score.score_audit import audit_scores

__all__ = ["audit_scores", "relative_correctness", "score_tree"]
