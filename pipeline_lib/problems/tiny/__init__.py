"""Generated problems with worked solutions, misconceptions and an oracle."""

from pipeline_lib.problems.tiny.script import error_prone_script
from pipeline_lib.problems.tiny.world import (
    POOL_SIZE,
    is_tiny,
    make_problem,
    make_worked_problem,
    steps_are_right,
    version_of,
)

__all__ = [
    "POOL_SIZE",
    "error_prone_script",
    "is_tiny",
    "make_problem",
    "make_worked_problem",
    "steps_are_right",
    "version_of",
]
