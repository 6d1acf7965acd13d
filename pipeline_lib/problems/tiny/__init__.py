"""Generated problems with worked solutions, misconceptions and an oracle."""

from pipeline_lib.problems.tiny.script import worked_script
from pipeline_lib.problems.tiny.world import POOL_SIZE, is_tiny, make_problem, make_worked, steps_are_right

__all__ = ["POOL_SIZE", "is_tiny", "make_problem", "make_worked", "steps_are_right", "worked_script"]
