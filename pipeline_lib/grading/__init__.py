"""Final answers: extract, compare, and the worker processes that compare the hard ones."""

from pipeline_lib.grading.conventions import GRADING_VERSION, Conventions
from pipeline_lib.grading.extract import extract_answer
from pipeline_lib.grading.workers.pool import Graded, GradingPool, grade, grade_answer
from pipeline_lib.grading.workers.worker_process import GradingError
from pipeline_lib.types import Grade

__all__ = [
    "GRADING_VERSION",
    "Conventions",
    "Grade",
    "Graded",
    "GradingError",
    "GradingPool",
    "extract_answer",
    "grade",
    "grade_answer",
]
