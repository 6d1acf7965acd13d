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
    """The lines that load a model's champion, with PEFT and with vLLM, on the machine of the run that made it.

    A registered adapter names its base as that machine finds it: a folder by its absolute path, a hub model by name
    and commit. Elsewhere, `coppice export` takes the base along.
    """
    return [
        f'champion = download_artifacts("models:/{name}@champion")',
        "policy = AutoPeftModelForCausalLM.from_pretrained(champion)",
        "base = PeftConfig.from_pretrained(champion).base_model_name_or_path",
        'answers = LLM(base, enable_lora=True).generate(prompts, lora_request=LoRARequest("champion", 1, champion))',
    ]
