"""What ends an answer: which token ids do, which one did, and which one is taught where nobody knows.

A model's generation config may declare ids besides the tokenizer's own end-of-sequence token, as chat models do for the
end of a turn. Sampling stops at all of them. The one that was sampled stays with its step and is what training scores.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PretrainedConfig

from pipeline_lib.policy.protocol import FinishReason

DeclaredIds = int | Sequence[int] | None

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}  # in vLLM's words; any other one is an error


def declared_end_ids(model_dir: Path | str, revision: str | None = None) -> DeclaredIds:
    """``eos_token_id`` of a model's generation config, or of its configuration where it has none; None for neither.

    No code that comes with a model is run for it: where only that knows the configuration, its file is read.

    Args:
        model_dir: folder or hub name.
        revision: of a hub model; None is its main branch.

    Raises:
        OSError, ValueError: the model's configuration cannot be read.
    """
    try:
        declared: DeclaredIds = GenerationConfig.from_pretrained(model_dir, revision=revision or "main").eos_token_id
    except OSError:
        values, _ = PretrainedConfig.get_config_dict(model_dir, revision=revision or "main")
        if values.get("model_type") not in CONFIG_MAPPING:
            own: DeclaredIds = values.get("eos_token_id")
            return own
        model = AutoConfig.from_pretrained(model_dir, revision=revision or "main", trust_remote_code=False)
        declared = getattr(model.get_text_config(), "eos_token_id", None)
    return declared


def end_token_ids(declared: DeclaredIds, tokenizer: Any) -> list[int]:
    """Ids at which sampling stops, ascending: those that the model declares and the tokenizer's own.

    Args:
        declared: see `declared_end_ids`.
        tokenizer: the policy's own.

    Example: declared ``[7, 2]`` and a tokenizer that ends with 2 give ``[2, 7]``.
    """
    several = declared if isinstance(declared, list | tuple) else (declared,)
    return sorted({int(i) for i in (*several, tokenizer.eos_token_id) if i is not None})


def trained_end_id(declared: DeclaredIds, tokenizer: Any) -> int:
    """The id that training scores where a finished answer does not tell which one ended it: the tokenizer's own.

    Args:
        declared: see `declared_end_ids`; the smallest one serves where the tokenizer has none.
        tokenizer: the policy's own.

    Raises:
        ValueError: nothing ends an answer.
    """
    known = end_token_ids(declared, tokenizer)
    if not known:
        where = tokenizer.name_or_path
        raise ValueError(f"the tokenizer in {where} has no end-of-sequence token; set eos_token in its configuration")
    return known[0] if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


def read_answer(
    token_ids: Sequence[int], finish_reason: str | None, end_ids: Collection[int], stop_reason: object = None
) -> tuple[Sequence[int], FinishReason, int | None]:
    """An answer of vLLM's without the token that ended it, why it ended, and that token; None where it is not known.

    Args:
        token_ids: as sampled.
        finish_reason: vLLM's own word.
        end_ids: see `end_token_ids`.
        stop_reason: of vLLM's, the id that ended the answer or something else; read where `token_ids` lack that id.
    """
    reason = _REASONS.get(finish_reason or "", FinishReason.ERROR)
    if reason is not FinishReason.STOP:
        return token_ids, reason, None
    if len(token_ids) > 0 and token_ids[-1] in end_ids:
        return token_ids[:-1], reason, int(token_ids[-1])
    return token_ids, reason, stop_reason if isinstance(stop_reason, int) and stop_reason in end_ids else None
