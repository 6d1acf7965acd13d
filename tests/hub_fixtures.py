"""The hub's cache of models as its client lays it out, without the hub."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline_lib.policy.model_folders import TINY_BASE

LAYOUT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# Its prompt names the day, as those of several families do.
DATED_TEMPLATE = (
    "{% if strftime_now is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ today }}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def cache_model(cache: Path, name: str, commit: str, *, ref: str = "main", template: str | None = None) -> Path:
    """The snapshot of a hub model: the embedded base without its weights, to which `ref` points from now on.

    Args:
        cache: the hub client's folder, ``HF_HUB_CACHE``.
        name: ``owner/name``.
        commit: 40 hex digits.
        ref: branch or tag.
        template: takes the place of the base's own chat template.
    """
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in LAYOUT:
        shutil.copy(TINY_BASE / file, snapshot / file)
    if template is not None:
        (snapshot / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / ref).write_text(commit, encoding="utf-8")
    return snapshot
