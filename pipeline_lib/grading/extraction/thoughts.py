"""Thoughts: what stands between ``<think>`` and ``</think>`` is no answer."""

from __future__ import annotations

import re

_TAG = re.compile(r"<(/?)(?:think|thinking|thought|thoughts|reasoning|scratchpad)>|<\|(begin|end)_of_thought\|>", re.I)


def without_thoughts(text: str) -> str:
    """The text behind and around its thoughts.

    An open thought takes all that follows; where only the end of one stands, as with prompts that end in ``<think>``,
    all before it was thought.

    Example: ``without_thoughts("<think>7?</think>8") == "8"``
    """
    if "<" not in text:
        return text
    kept: list[str] = []
    start, is_thinking = 0, False
    for tag in _TAG.finditer(text):
        is_end = tag[1] == "/" or tag[2] == "end"
        if is_end and not is_thinking:
            kept = []
        elif not is_end and not is_thinking:
            kept.append(text[start : tag.start()])
        is_thinking = not is_end
        start = tag.end()
    return "".join(kept) + ("" if is_thinking else text[start:])
