"""How far back the layers of a model look, and whether a packed tree can tell them what to see; no torch needed.

One idea: a layer that takes a mask can be shown a tree. Full attention sees a token's ancestors, attention with a
sliding window those of them that are near; whatever else mixes the tokens of a row would mix the branches of a tree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_lib.config import ConfigError, PolicyConfig

FULL, SLIDING = "full_attention", "sliding_attention"
ALL_LAYERS = ""  # the kind of all layers where a model takes one mask for all of them
OF_THE_LONGEST_ROW = {"dynamic", "longrope"}  # rotary embeddings whose frequencies the longest row of a pass decides


def windows_by_kind(layout: Any) -> dict[str, int | None]:
    """For each kind of layer how many tokens it sees at most, its own the last; None where it sees all.

    Args:
        layout: configuration of the language model, see transformers' ``get_text_config``.

    Example: layers of Gemma-2 give ``{"full_attention": None, "sliding_attention": 4096}``, those of Mistral-7B-v0.1
    ``{"": 4096}``.
    """
    window = getattr(layout, "sliding_window", None)
    kinds = getattr(layout, "layer_types", None)
    if kinds is None:
        return {ALL_LAYERS: window}
    return {kind: window if kind == SLIDING else None for kind in sorted(set(kinds))}


def attention_for(layout: Any) -> str:
    """The attention of transformers that computes all that a model asks for: ``sdpa`` drops a soft-cap silently."""
    return "eager" if getattr(layout, "attn_logit_softcapping", None) else "sdpa"


def check_layers(model_dir: Path | str, policy: PolicyConfig) -> None:
    """Raises ConfigError where the model's configuration says already that it cannot be trained on packed trees.

    Args:
        model_dir: model folder or hub name; only its configuration is read.
        policy: context and revision.
    """
    from transformers import AutoConfig

    revision = None if Path(model_dir).is_dir() else policy.revision
    trusted = policy.trust_remote_code
    layout = AutoConfig.from_pretrained(model_dir, revision=revision, trust_remote_code=trusted).get_text_config()
    reason = why_not_packed(layout, policy.max_context_tokens)
    if reason is not None:
        raise ConfigError(f"policy.model={policy.model} cannot be trained on packed trees: {reason}")


def why_not_packed(layout: Any, context_tokens: int) -> str | None:
    """What a configuration says against packed trees; None where it says nothing.

    Args:
        layout: see `windows_by_kind`.
        context_tokens: the longest path.
    """
    others = sorted(windows_by_kind(layout).keys() - {FULL, SLIDING, ALL_LAYERS})
    if others:
        return (
            f"its layers of kind {others[0]} take no mask that says which tokens of a tree they see; "
            "take a model whose layers are full or sliding attention"
        )
    rope = getattr(layout, "rope_parameters", None) or {}
    for part in (rope, *(each for each in rope.values() if isinstance(each, dict))):
        longest = part.get("original_max_position_embeddings") or layout.max_position_embeddings
        if part.get("rope_type") in OF_THE_LONGEST_ROW and context_tokens > longest:
            return (
                f"one path of more than {longest} tokens changes its rotary embedding ({part['rope_type']}) for all "
                f"others; set policy.max_context_tokens={longest} or less"
            )
    return None
