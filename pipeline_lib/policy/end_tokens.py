"""What ends an answer: which token ids do, and how an answer that ended with one is read.

A model's generation config may declare ids besides the tokenizer's own end-of-sequence token, as chat models do for the
end of a turn. Sampling stops at all of them; training appends the tokenizer's own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pipeline_lib.policy.protocol import FinishReason

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}  # in vLLM's words; any other one is an error


def end_token_ids(declared: int | Sequence[int] | None, tokenizer: Any) -> list[int]:
    """Ids at which sampling stops, ascending: those of the generation config and the tokenizer's own.

    Args:
        declared: ``eos_token_id`` of the model's generation config, which is one id, several or none.
        tokenizer: the policy's own.

    Example: declared ``[7, 2]`` and a tokenizer that ends with 2 give ``[2, 7]``.
    """
    several = declared if isinstance(declared, list | tuple) else (declared,)
    return sorted({int(i) for i in (*several, tokenizer.eos_token_id) if i is not None})


def trained_end_id(tokenizer: Any) -> int:
    """The id that training appends to a finished answer.

    Raises:
        ValueError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        where = tokenizer.name_or_path
        raise ValueError(f"the tokenizer in {where} has no end-of-sequence token; set eos_token in its configuration")
    return int(tokenizer.eos_token_id)


def read_answer(
    token_ids: Sequence[int], finish_reason: str | None, end_ids: Collection[int]
) -> tuple[Sequence[int], FinishReason]:
    """An answer of vLLM's without the token that ended it, and why it ended.

    Args:
        token_ids: as sampled.
        finish_reason: vLLM's own word.
        end_ids: see `end_token_ids`.
    """
    reason = _REASONS.get(finish_reason or "", FinishReason.ERROR)
    is_ended = reason is FinishReason.STOP and len(token_ids) > 0 and token_ids[-1] in end_ids
    return token_ids[:-1] if is_ended else token_ids, reason
