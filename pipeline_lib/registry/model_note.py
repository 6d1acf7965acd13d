"""What a registered model says about itself: the Markdown that MLflow shows as its description."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline_lib.registry.promotion import ChampionMove

SHOWN_MOVES = 10
MAX_CHARS = 7900  # MLflow keeps 8,000


def model_note(name: str, moves: Sequence[ChampionMove]) -> str:
    """A registered model's description: how to load it, and the latest moves of `champion`, newest first.

    Args:
        name: the registered model's, ``coppice-tiny``.
        moves: all on record, the oldest first.
    """
    lines = ["Adapters made by Coppice; `champion` is what deployments load.", ""]
    lines += ["```python", *load_lines(name), "```", ""]
    if moves:
        lines += ["| when | what | version | instead of | why |", "|---|---|---|---|---|"]
    for move in reversed(moves[-SHOWN_MOVES:]):
        cells = (move.at, move.action, move.version, move.previous or "–", move.reason.replace("|", "/"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)[:MAX_CHARS]


def load_lines(name: str) -> list[str]:
    """The two lines that load a model's champion, with PEFT and with vLLM.

    Both are told where the base is: an adapter's own files know a folder by its last name only, so that they are the
    same on every machine.
    """
    folder = f'download_artifacts("models:/{name}@champion")'
    return [
        f"policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), {folder})",
        f'answers = LLM(BASE, enable_lora=True).generate(prompts, lora_request=LoRARequest("champion", 1, {folder}))',
    ]
