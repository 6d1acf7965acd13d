"""What is said around a question, and how a tokenizer makes one prompt of it.

One idea: a prompt is a list of turns, put through the tokenizer's own chat template, or, where it has none, through a
plain one of ours. What a setting adds must be seen in the prompt: where a template drops it, it is refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from itertools import takewhile
from typing import Any, NamedTuple

import jinja2
import jinja2.meta

from pipeline_lib.config import TEMPLATE_DATE, ConfigError
from pipeline_lib.config.one_line import first_line

Turns = list[dict[str, str]]
PLAIN_VERSION = 1  # rises with every change of what follows
PLAIN_TEMPLATE = (
    "{% for turn in messages %}"
    "{% if turn.role == 'user' %}Question: {{ turn.content }}\n"
    "{% elif turn.role == 'assistant' %}Answer: {{ turn.content }}\n\n"
    "{% elif turn.content %}{{ turn.content }}\n\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
PLAIN_STOP = "\nQuestion:"
"""Ends an answer under the plain template: the next question, which a base model goes on to ask itself."""


class Shot(NamedTuple):
    """A question with its worked solution, shown before the one that is asked."""

    question: str
    solution: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is said besides a question.

    Args:
        instruction: appended to every question on a line of its own; "" adds nothing.
        system: the system's turn, which comes first; None leaves it to the template, "" is a turn without a word.
        shots: worked examples, each with the instruction. The last one is in reserve, for a question that is among the
            others: no prompt shows its own solution, and all prompts show as many.
        template_options: what the template is told besides, by the names that it asks for.
        today: what the template's ``strftime_now`` tells, so that a prompt is the same on every day.
    """

    instruction: str = ""
    system: str | None = None
    shots: tuple[Shot, ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    today: date = TEMPLATE_DATE

    def turns(self, question: str) -> Turns:
        """What is said up to where the answer begins."""
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        others = [shot for shot in self.shots if shot.question != question]
        for shot in others[: max(0, len(self.shots) - 1)]:
            turns += [self._asked(shot.question), {"role": "assistant", "content": shot.solution}]
        return [*turns, self._asked(question)]

    def _asked(self, question: str) -> dict[str, str]:
        return {"role": "user", "content": f"{question}\n{self.instruction}" if self.instruction else question}


class PromptTemplate:
    """A tokenizer's chat template, told what the settings say; the plain one where it has none.

    Args:
        tokenizer: a Hugging Face one.
        conversation: `template_options` and `today` are read, `system` is tried.

    Attributes:
        is_plain: whether it is ours.

    Raises:
        ConfigError: it has no use for what it is told.
    """

    def __init__(self, tokenizer: Any, conversation: Conversation) -> None:
        self._tokenizer = tokenizer
        self.is_plain = not tokenizer.chat_template
        # Chat templates write the first token themselves; to a plain text the tokenizer adds it.
        special = set(tokenizer.all_special_ids)
        self._lead = list(takewhile(special.__contains__, tokenizer.encode("a"))) if self.is_plain else []
        now = datetime.combine(conversation.today, time())
        # A value of the template's takes the place of the library's own.
        self._options = {**conversation.template_options, "strftime_now": now.strftime}
        self._check(conversation)

    def ids(self, turns: Turns) -> list[int]:
        """The tokens of turns, up to where the answer begins."""
        ids: list[int] = self._apply(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        return [*self._lead, *ids]

    def text(self, turns: Turns, *, leads_to_answer: bool = True) -> str:
        """The text of turns, special tokens included.

        Args:
            turns: what is said.
            leads_to_answer: whether the template is asked to begin the answer.
        """
        text: str = self._apply(turns, add_generation_prompt=leads_to_answer, tokenize=False)
        return text

    def _apply(self, turns: Turns, **how: Any) -> Any:
        try:
            own = {"chat_template": PLAIN_TEMPLATE} if self.is_plain else {}
            return self._tokenizer.apply_chat_template(turns, **how, **own, **self._options)
        except jinja2.TemplateError as error:
            raise ConfigError(
                f"policy.model: its chat template refuses the prompt ({first_line(error).rstrip('.')}); leave out what "
                "it does not take of policy.system_prompt and policy.chat_template_kwargs, or mend the template"
            ) from error

    def _check(self, conversation: Conversation) -> None:
        """Raises ConfigError where the template has no use for a setting."""
        templates = PLAIN_TEMPLATE if self.is_plain else self._tokenizer.chat_template
        asked_for = _variables(*(templates.values() if isinstance(templates, dict) else [templates]))
        reserved = {*inspect.signature(self._tokenizer.apply_chat_template).parameters, "messages", "strftime_now"}
        for name in conversation.template_options:
            if name in reserved:
                raise ConfigError(f"policy.chat_template_kwargs: {name} is set by Coppice itself; leave it out")
            if name not in asked_for:
                raise ConfigError(
                    f"policy.chat_template_kwargs: the model's chat template never asks for {name!r}; leave it out"
                )
        if conversation.system and conversation.system.strip() not in self.text(conversation.turns("1+1?")):
            raise ConfigError(
                "policy.system_prompt: the model's chat template drops the system's turn; say it in policy.instruction"
            )


def _variables(*templates: str) -> set[str]:
    """What chat templates ask for by name; what a text or a comment in them says is not asked for.

    Raises:
        ConfigError: one is no template.
    """
    # Where the library marks what an assistant says, two tags of its own stand, which change no text.
    sources = [re.sub(r"{%-?\s*(?:end)?generation\s*-?%}", "", template) for template in templates]
    language = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return {name for source in sources for name in jinja2.meta.find_undeclared_variables(language.parse(source))}
    except jinja2.TemplateError as error:
        raise ConfigError(f"policy.model: its chat template cannot be read ({first_line(error)}); mend it") from error
