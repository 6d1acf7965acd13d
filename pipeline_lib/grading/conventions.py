"""What counts as equal where opinions differ: named options, with a default for each.

A convention is chosen per dataset, never guessed from the answer. `GradingConfig` holds what a user sets and what
a dataset's format sets; the defaults are here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from pipeline_lib.config import GradingConfig

GRADING_VERSION = 2
"""Raised with every change that changes a grade: it is part of what searches and evaluations are kept under."""

MIN_ROUNDED_DECIMALS = 2
"""A decimal with fewer digits after its point is not taken for a rounded value."""


@dataclass(frozen=True, slots=True)
class Conventions:
    r"""How an answer is compared with the gold.

    Args:
        any_order: ``1, 2`` is ``2, 1``. Sets never have an order, tuples and intervals always do.
        percent: ``5%`` is 0.05 ("fraction"), 5 ("unit") or both ("either").
        ignore_units: ``5 cm`` is 5. ``5 cm`` is never ``5 m``.
        rounded: a decimal with two or more digits after its point is every value that rounds to it.
        mixed_numbers: ``1\frac{1}{2}`` and ``1 1/2`` are 3/2; else they are products.
        last_number: a text that announces no answer has its last number as one.
        cut_thoughts: what stands in ``<think>…</think>``, closed or not, is no answer and announces none.
        positive_letters: letters stand for positive numbers: ``\sqrt{x^2}`` is ``x``.
        log_base: ``\log`` without a base is to base 10, or natural ("e").
        choice_text: ``C. 12`` and ``(C) none of these`` are ``C``.
        announced_gold: a gold that still carries its announcement (``#### 5``, "the answer is 5") is cut down to it.

    Example: ``Conventions(rounded=True)`` finds 0.333 equal to 1/3.
    """

    any_order: bool = True
    percent: Literal["either", "fraction", "unit"] = "either"
    ignore_units: bool = True
    rounded: bool = False
    mixed_numbers: bool = True
    last_number: bool = False
    cut_thoughts: bool = True
    positive_letters: bool = False
    log_base: Literal["10", "e"] = "10"
    choice_text: bool = True
    announced_gold: bool = True

    @classmethod
    def of(cls, *layers: GradingConfig) -> Conventions:
        """Each option as the first of `layers` has it that sets it, else the default.

        Example: ``Conventions.of(config.grading, format_of("gsm8k").grading).percent == "unit"``
        """
        chosen: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            values = [value for layer in layers if (value := getattr(layer, name)) is not None]
            chosen |= {name: values[0]} if values else {}
        return cls(**chosen)


DEFAULT = Conventions()
