"""Step splitting: rollouts a second on one core, in the engine's loop, and whether time grows with the length alone.

The texts are the answers of `answer_fixtures`, one behind the other, as two kinds of tokenizers see them: byte-level
ones, whose rare characters lie across tokens, and those that drop a text's first space and write rare characters as
bytes, of which no token spells its own text. Both have 3,000 entries learned from these answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from answer_fixtures import all_answers, byte_fallback_tokenizer, byte_level_tokenizer, codec_of
from benchmarks.measuring import Figure, clock_for, in_turns

from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.search import TokenTexts, split_steps
from pipeline_lib.types import Int32Array

ROLLOUT_TOKENS, LONG_TOKENS = 500, 31_000
TOKENIZERS = {"byte_level": byte_level_tokenizer, "byte_fallback": byte_fallback_tokenizer}


def step_figures(*, num_rollouts: int = 400, rounds: int = 3) -> list[Figure]:
    """The figures of step splitting.

    Args:
        num_rollouts: of `ROLLOUT_TOKENS` each, for each tokenizer.
        rounds: turns of each side.
    """
    texts = ["".join(steps) for steps in all_answers().values()]
    codecs = {name: codec_of(make(texts)) for name, make in TOKENIZERS.items()}
    works: dict[str, Callable[[int], float]] = {}
    for name, codec in codecs.items():
        works[name] = _splitting(codec, _rollouts(codec, texts, ROLLOUT_TOKENS, num_rollouts))
        num_long = max(1, num_rollouts * ROLLOUT_TOKENS // LONG_TOKENS)
        works[f"{name}_long"] = _splitting(codec, _rollouts(codec, texts, LONG_TOKENS, num_long))
    for work in works.values():
        work(-1)  # the texts of tokens are remembered, as they are soon in a search
    costs = in_turns(works, rounds=rounds)
    clock = clock_for([cost for each in costs.values() for cost in each])
    rates = {name: max(cost.rate(clock) for cost in each) for name, each in costs.items()}
    per_s = {name: round(rates[name] / ROLLOUT_TOKENS, 1) for name in codecs}
    slowdowns = {name: round(rates[name] / rates[f"{name}_long"], 3) for name in codecs}
    details: dict[str, object] = {"clock": clock, "rollout_tokens": ROLLOUT_TOKENS, "long_tokens": LONG_TOKENS}
    return [
        Figure("steps.rollouts_per_s", min(per_s.values()), 2000.0, details={**details, **per_s}),
        Figure("steps.long_vs_short", max(slowdowns.values()), 2.0, at_least=False, details={**details, **slowdowns}),
    ]


def _rollouts(codec: TokenizerCodec, texts: Sequence[str], num_tokens: int, count: int) -> list[Int32Array]:
    """So many rollouts of so many tokens: answers joined from another one on each time."""
    answers = [codec.encode(text + "\n\n") for text in texts]
    needed = num_tokens * len(answers) // sum(map(len, answers)) + 2  # repeats of all answers
    whole = np.concatenate(answers * (needed + 1))
    starts = np.cumsum([0, *map(len, answers)])
    return [whole[start : start + num_tokens] for start in (int(starts[i % len(answers)]) for i in range(count))]


def _splitting(codec: TokenizerCodec, rollouts: Sequence[Int32Array]) -> Callable[[int], float]:
    """Splits all of them; returns their tokens."""
    texts = TokenTexts()

    def work(turn: int) -> float:
        for ids in rollouts:
            split_steps(ids, codec, markdown=True, texts=texts)
        return float(sum(map(len, rollouts)))

    return work
