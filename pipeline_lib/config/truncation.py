"""What becomes of an answer that a limit cut off, and which limit that was.

One idea: search and evaluation share one rule, so that the reward that steps are scored by and the accuracy that is
reported mean the same; and every cut answer knows its limit, so that advice names the setting that moves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Literal

Truncated = Literal["wrong", "grade", "ignore"]


class Cutoff(IntEnum):
    """The first limit that an answer passed; ``NONE`` where the policy ended it, or where 0.1.0 kept no record."""

    NONE = 0
    STEP = 1
    DEPTH = 2
    TOKENS = 3
    CONTEXT = 4


SEARCH_DIALS = {
    "step": "search.max_step_tokens",
    "depth": "search.max_depth",
    "tokens": "search.max_new_tokens",
    "context": "policy.max_context_tokens",
}
EVALUATION_DIALS = {**SEARCH_DIALS, "tokens": "evaluation.max_new_tokens"}
CUTOFF_NAMES = tuple(cutoff.name.lower() for cutoff in Cutoff)


def count_cutoffs(numbers: Sequence[int]) -> dict[str, int]:
    """How many answers each limit cut off, by its name; limits that cut none off, and ``NONE``, are left out.

    Args:
        numbers: one for each `Cutoff`, in their order; missing ones are 0.

    Example: ``count_cutoffs([90, 0, 2, 8])`` is ``{"depth": 2, "tokens": 8}``.
    """
    named = zip(CUTOFF_NAMES, numbers, strict=False)
    return {name: int(number) for name, number in named if number and name != "none"}


def dial_to_raise(counts: Mapping[str, int], dials: Mapping[str, str] = SEARCH_DIALS) -> str:
    """The setting of the limit that cut off most answers; that of the tokens where no cause is known.

    Args:
        counts: as `count_cutoffs` gives them.
        dials: from a limit's name to its setting.

    Example: ``dial_to_raise({"depth": 2, "step": 8})`` is ``"search.max_step_tokens"``.
    """
    return dials[max(counts, key=lambda name: counts[name], default="tokens")]
