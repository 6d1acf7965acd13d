"""Writes a policy as a model folder or an adapter folder that transformers, PEFT and vLLM load as they stand.

The tokenizer with its chat template lies beside the weights, and the generation config names every token that ends an
answer, also those that only the tokenizer knows: whoever loads the folder stops where Coppice does.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.policy.export.adapter_files import CONFIG_FILE, name_base
from pipeline_lib.policy.model_folders import LAYOUT_FILES, WEIGHT_FILES

BASE_FOLDER = "base"
GENERATION_FILE = "generation_config.json"
WEIGHT_FILE_LIMIT = "5GB"  # a hub takes no larger ones in one piece
MORE_TEMPLATES = "additional_chat_templates"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def is_adapter(folder: Path) -> bool:
    """Whether a policy's folder holds an adapter; full weights otherwise."""
    return (folder / CONFIG_FILE).is_file()


def write_adapter(folder: Path, adapter: Path, base: str, base_folder: Path | None, revision: str | None) -> None:
    """An adapter whose base is found: a hub model by name and commit; a folder is copied along.

    Args:
        folder: to write to.
        adapter: as training wrote it.
        base: what the adapter names, for a copied base the folder that it will lie in.
        base_folder: the base's, to be copied to `BASE_FOLDER`; None for a hub model.
        revision: of a hub model.
    """
    for file in adapter.iterdir():
        if file.is_file() and file.name != CONFIG_FILE:
            shutil.copyfile(file, folder / file.name)
    (folder / CONFIG_FILE).write_text(name_base(adapter / CONFIG_FILE, base, revision), encoding="utf-8")
    if base_folder is not None:
        _copy_base(base_folder, folder / BASE_FOLDER)


def write_merged(folder: Path, adapter: Path, base: Path | str, policy: PolicyConfig) -> None:
    """The base with the adapter in its weights, in ``policy.dtype``: what the transformers engine samples.

    Args:
        folder: to write to.
        adapter: as training wrote it.
        base: its folder or hub name.
        policy: the number type, the revision on the hub, and whether the model's own code may run.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a bar per load would tear the caller's own lines apart
    model = AutoModelForCausalLM.from_pretrained(
        base,
        revision=(policy.revision if isinstance(base, str) else None) or "main",
        dtype=getattr(torch, policy.dtype),
        use_safetensors=True,
        trust_remote_code=policy.trust_remote_code,
    )
    merged: Any = PeftModel.from_pretrained(model, str(adapter), torch_device="cpu").merge_and_unload()
    merged.generation_config = GenerationConfig()  # `write_tokenizer` writes the model's own; some cannot be saved
    merged.save_pretrained(folder, max_shard_size=WEIGHT_FILE_LIMIT)


def write_tokenizer(folder: Path, base_folder: Path, policy: PolicyConfig) -> list[int]:
    """Tokenizer, chat template, and the generation config; returns the tokens that end an answer.

    Args:
        folder: to write to; a tokenizer that lies there already stays.
        base_folder: the base's.
        policy: the hub revision is read.

    Raises:
        ConfigError: nothing ends an answer.
    """
    from transformers import GenerationConfig

    from pipeline_lib.policy.end_tokens import declared_end_ids, end_token_ids
    from pipeline_lib.policy.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(base_folder, policy)
    if not (folder / "tokenizer_config.json").is_file():
        tokenizer.save_pretrained(folder)
    end_ids = end_token_ids(declared_end_ids(base_folder), tokenizer)
    if not end_ids:
        raise ConfigError(f"{base_folder}: neither tokenizer nor configuration names a token that ends an answer")
    own = base_folder / GENERATION_FILE
    values = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else GenerationConfig().to_diff_dict()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0]
    values = {"pad_token_id": pad} | values | {"eos_token_id": end_ids}
    (folder / GENERATION_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return end_ids


def _copy_base(base_folder: Path, folder: Path) -> None:
    """What loads the base, its card and its licence; other formats of its weights stay where they are."""
    folder.mkdir()
    for pattern in (*LAYOUT_FILES, *WEIGHT_FILES, "*.md", "LICENSE*", "USE_POLICY*"):
        for file in base_folder.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    if (base_folder / MORE_TEMPLATES).is_dir():
        shutil.copytree(base_folder / MORE_TEMPLATES, folder / MORE_TEMPLATES)


def base_licence(base_folder: Path) -> str | None:
    """The licence that the base's card names in its head; None where it has no card, or the card no licence."""
    import yaml

    card = base_folder / "README.md"
    if not card.is_file():
        return None
    _, opened, rest = card.read_text(encoding="utf-8").partition("---\n")
    head, closed, _ = rest.partition("\n---")
    try:
        values = yaml.safe_load(head) if opened and closed else None
    except yaml.YAMLError:
        return None
    named = values.get("license") if isinstance(values, dict) else None
    return str(named) if named else None


def served_rank(adapter: Path) -> int:
    """The rank that vLLM has to make room for: the smallest that it offers and that holds the adapter's."""
    values = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    rank = max(int(values["r"]), *(int(each) for each in (values.get("rank_pattern") or {}).values()), 0)
    return next((offered for offered in VLLM_RANKS if offered >= rank), rank)
