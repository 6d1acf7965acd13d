"""The card of an exported policy: what it is, what it was made of, what it scored, how it is loaded.

All but what lies in the folder comes from the version's tags, so the run that made it may be gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline_lib.registry.lineage import PARENT_ITERATION, POLICY_ID

Kind = Literal["adapter", "merged", "full"]
KINDS: Mapping[Kind, str] = {
    "adapter": "a LoRA adapter on",
    "merged": "a LoRA adapter, merged into the weights of",
    "full": "all weights, trained from",
}
SCORE = re.compile(r"(eval|validation)/(.+)/(accuracy|avg_at_\d+)")
DIGEST = "digest/"


@dataclass(frozen=True, slots=True)
class ExportedFiles:
    """What lies in the folder that a card describes.

    Args:
        kind: an adapter, a base with the adapter in its weights, or weights that were all trained.
        base: the base as others know it: a hub name, or a folder's last name.
        revision: commit of a hub model.
        licence: the base's, as its own card names it; None where that is not known.
        has_base: the base lies in ``base/``.
        dtype: of the computation that was measured.
        lora_rank: of an adapter; 0 for none.
        instruction: what was appended to every question; "" for nothing.
        told: what else its prompts said, and what ended its answers, each in a few words.
        coppice: version of Coppice.
    """

    kind: Kind
    base: str
    revision: str | None
    licence: str | None
    has_base: bool
    dtype: str
    lora_rank: int
    instruction: str
    told: tuple[str, ...]
    coppice: str


def model_card(name: str, version: str, tags: Mapping[str, str], files: ExportedFiles) -> str:
    """The text of an exported folder's README.md.

    Args:
        name: the registered model's, ``coppice-tiny``.
        version: its number in the registry.
        tags: the version's, see `lineage.version_tags`.
        files: what lies in the folder.
    """
    revision = f" at commit `{files.revision}`" if files.revision else ""
    licence = files.licence or "not known here; see its own page"
    made = [
        f"Version {version} of `{name}`: {KINDS[files.kind]} `{files.base}`{revision}, made by",
        f"Coppice {files.coppice}, which improves a model's step-by-step reasoning with data that the model makes",
        f"itself (tree search, step scores, weighted training). It is the result of {_iterations(tags)}.",
        "",
        f"- **Licence of the base**: {licence}. These weights derive from it.",
        f"- **Policy**: `{tags.get(POLICY_ID, '?')}`, computed and measured in {files.dtype}.",
        f"- **Prompt**: the question through the chat template{_instruction(files.instruction)}.",
        *(f"- **Asked with**: {each}." for each in files.told),
    ]
    sections = [
        _head(files),
        "\n".join([f"# {name}, version {version}", "", *made]),
        "\n".join(["## Scores", "", *_score_lines(tags)]),
        "\n".join(["## Data", "", *_digest_lines(tags)]),
        "\n".join(["## How to load it", "", *_loading_lines(files)]),
    ]
    return "\n\n".join(sections) + "\n"


def _head(files: ExportedFiles) -> str:
    """What a hub reads of a card; JSON's texts are YAML's."""
    is_adapter = files.kind == "adapter"
    values = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "base_model": files.base if "/" in files.base else None,
        "base_model_relation": "adapter" if is_adapter else "finetune",
        "license": files.licence,
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items() if value is not None]
    return "\n".join(["---", *lines, "tags:", "- coppice", "---"])


def _iterations(tags: Mapping[str, str]) -> str:
    iteration = tags.get("coppice.iteration", "?")
    came_from = tags.get(PARENT_ITERATION)
    origin = f", trained from iteration {came_from}" if came_from not in (None, "0") else ""
    return f"iteration {iteration}{origin}"


def _instruction(instruction: str) -> str:
    return f", followed by a line of its own: `{' '.join(instruction.split())}`" if instruction else ", nothing added"


def _score_lines(tags: Mapping[str, str]) -> list[str]:
    """A row per data set and measure, in per cent with the 95 % interval; validation is what versions are chosen by."""
    rows = []
    for name in sorted(tags):
        found = SCORE.fullmatch(name)
        if found is None:
            continue
        split, dataset, measure = found.groups()
        low, high = (tags.get(f"{name}_{end}") for end in ("low", "high"))
        interval = f"{float(low):.1%} – {float(high):.1%}" if low and high else "–"
        split = "test" if split == "eval" else split
        rows.append(f"| {dataset} | {split} | {measure.replace('_at_', '@')} | {float(tags[name]):.1%} | {interval} |")
    if not rows:
        return ["None on record."]
    return ["| data set | split | measure | | 95 % interval |", "|---|---|---|---|---|", *rows]


def _digest_lines(tags: Mapping[str, str]) -> list[str]:
    """SHA-256 of everything that it was trained on or measured on, as Coppice's store knows it."""
    digests = {name.removeprefix(DIGEST): value for name, value in tags.items() if name.startswith(DIGEST)}
    if not digests:
        return ["None on record."]
    rows = [f"| {name} | `{value}` |" for name, value in sorted(digests.items())]
    return ["| data | SHA-256 in the store |", "|---|---|", *rows]


def _loading_lines(files: ExportedFiles) -> list[str]:
    """Python that loads the folder, and the command that serves it; ``DIR`` is the folder."""
    if files.kind != "adapter":
        return [
            "```python",
            "from transformers import pipeline",
            "",
            'answer = pipeline("text-generation", "DIR")',
            'print(answer([{"role": "user", "content": QUESTION}], max_new_tokens=512, do_sample=False))',
            "```",
            "",
            "```sh",
            f"VLLM_API_KEY=… vllm serve DIR --host 127.0.0.1 --dtype {files.dtype}",
            "```",
        ]
    base = "DIR/base" if files.has_base else files.base
    pinned = f', revision="{files.revision}"' if files.revision else ""
    served = f" --revision {files.revision}" if files.revision else ""
    moved = [f'base = AutoModelForCausalLM.from_pretrained("{base}"{pinned})  # also where DIR was moved']
    return [
        "```python",
        "from peft import AutoPeftModelForCausalLM, PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'policy = AutoPeftModelForCausalLM.from_pretrained("DIR")',
        *([*moved, 'policy = PeftModel.from_pretrained(base, "DIR")'] if files.has_base else []),
        'tokenizer = AutoTokenizer.from_pretrained("DIR")',
        "```",
        "",
        "```sh",
        f"VLLM_API_KEY=… vllm serve {base}{served} --host 127.0.0.1 --dtype {files.dtype} \\",
        f"  --enable-lora --max-lora-rank {files.lora_rank} --lora-modules policy=DIR",
        "```",
    ]
