"""Text to token ids and back, through the chat template of the policy's own tokenizer."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Any

import numpy as np

from pipeline_lib.config import TEMPLATE_DATE, ConfigError
from pipeline_lib.types import Int32Array


class TokenizerCodec:
    """A Hugging Face tokenizer as a `Codec`.

    Args:
        tokenizer: with a chat template; nothing is loaded here.
        instruction: appended to every question on a line of its own; "" adds nothing.
        today: what the template's ``strftime_now`` tells, so that a prompt is the same on every day.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, instruction: str = "", today: date = TEMPLATE_DATE) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"policy.model: the tokenizer of {tokenizer.name_or_path!r} has no chat template;"
                " use an instruction-tuned model, or add a chat_template.jinja to its folder"
            )
        self.tokenizer = tokenizer
        self.instruction = instruction
        self._now = datetime.combine(today, time())
        self._backend = getattr(tokenizer, "backend_tokenizer", None)

    def encode_prompt(self, question: str) -> Int32Array:
        content = f"{question}\n{self.instruction}" if self.instruction else question
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            strftime_now=self._now.strftime,  # a value of the template's takes the place of the library's own
        )
        return np.asarray(ids, dtype=np.int32)

    def encode(self, text: str) -> Int32Array:
        return np.asarray(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def decode(self, token_ids: Int32Array) -> str:
        ids = token_ids.tolist()
        if self._backend is not None:  # what the tokenizer itself calls, a third of the time
            return str(self._backend.decode(ids, skip_special_tokens=True))
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
