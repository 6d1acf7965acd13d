"""What a model's chat template and files must say for it to answer, and to end its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline_lib.config import ConfigError
from pipeline_lib.policy.end_tokens import declared_end_ids, end_token_ids
from pipeline_lib.policy.prompting.conversation import PromptTemplate

QUESTION, ANSWER = "What is 1+1?", "It is 2."


def check_template(template: PromptTemplate) -> None:
    """Raises ConfigError where the prompt does not lead up to the answer.

    A template that ignores ``add_generation_prompt`` is right where nothing stands between the question and the
    answer (``[/INST]`` ends the one and begins the other); where a header does, the model would have to write it.
    """
    asked = [{"role": "user", "content": QUESTION}]
    prompt, without = (template.text(asked, leads_to_answer=wanted) for wanted in (True, False))
    if QUESTION not in prompt:
        raise ConfigError("policy.model: its chat template drops the user's question; mend the template")
    if prompt != without:
        return
    whole = template.text([*asked, {"role": "assistant", "content": ANSWER}], leads_to_answer=False)
    header = whole[len(prompt) :].partition(ANSWER)[0].strip() if whole.startswith(prompt) else ""
    if header:
        raise ConfigError(
            f"policy.model: its chat template ignores add_generation_prompt, so a prompt ends before {header!r} and "
            "the model goes on with the question; add that header under `if add_generation_prompt` to "
            "chat_template.jinja"
        )


def check_end_token(folder: Path, tokenizer: Any) -> None:
    """Raises ConfigError where no token is known to end an answer: every answer would run into its limit.

    Args:
        folder: with ``config.json`` and, where the model has one, ``generation_config.json``.
        tokenizer: the model's own.
    """
    if not end_token_ids(declared_end_ids(folder), tokenizer):
        raise ConfigError(
            "policy.model: neither its tokenizer nor its configuration names an end token, so no answer would end; set "
            "eos_token in tokenizer_config.json or eos_token_id in generation_config.json"
        )
