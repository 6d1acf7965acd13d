"""What the scripted policy answers to tiny problems: worked solutions with seeded mistakes, no model needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline_lib.problems.tiny.world import make_worked_problem
from pipeline_lib.seeding import derive_generator
from pipeline_lib.types import Problem

ERROR_RATE = 0.25


def error_prone_script(problems: Sequence[Problem], prompt_of: Callable[[str], str]) -> Callable[[str, str, int], str]:
    """A script for `ScriptedPolicy` that knows these tiny problems.

    From any prefix it goes on with the worked solution's remaining lines; each line is spoilt with
    probability `ERROR_RATE`, and after a spoilt line the final answer is wrong.

    Args:
        problems: of a tiny world; only their ids say how a worked solution goes.
        prompt_of: from a question to the text of its prompt.
    """
    lines = {}
    for problem in problems:
        dataset, split, index = problem.problem_id.split("/")
        lines[prompt_of(problem.question)] = make_worked_problem(dataset, split, int(index)).lines

    def script(prompt: str, prefix: str, seed: int) -> str:
        worked = lines[prompt]
        written = prefix.splitlines()
        spoilt = any(step != line for step, line in zip(written, worked, strict=False))
        generator = derive_generator(seed, "script")
        rest = []
        for line in worked[len(written) :]:
            is_answer = line == worked[-1]
            spoilt |= not is_answer and generator.random() < ERROR_RATE
            rest.append(_spoil(line) if spoilt else line)
        return "\n".join(rest)

    return script


def _spoil(line: str) -> str:
    """The line with its last number one larger."""
    end = max((i for i, c in enumerate(line) if c.isdigit()), default=-1) + 1
    start = end
    while start and line[start - 1].isdigit():
        start -= 1
    return line[:start] + str(int(line[start:end] or 0) + 1) + line[end:]
