"""From a model folder to its tokenizer, and to the codec that prompts are made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer
from transformers.utils import logging as transformers_logging

from pipeline_lib.config import ConfigError, PolicyConfig
from pipeline_lib.config.one_line import first_line
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.model_folders import check_folder
from pipeline_lib.policy.prompting.conversation import PLAIN_STOP, Conversation, Shot
from pipeline_lib.policy.prompting.stop_rule import AnswerMark, StopRule


def load_tokenizer(model_dir: Path | str, config: PolicyConfig) -> Any:
    """The tokenizer beside the model.

    Args:
        model_dir: folder or hub name.
        config: the hub revision is read.

    Raises:
        ConfigError: there is none that can be loaded, or the model comes with code that must not be run.
    """
    check_folder(model_dir, "model")
    refuse_own_code(model_dir, config)
    transformers_logging.disable_progress_bar()  # the trainer's bar per load would tear the run's own apart
    try:
        return AutoTokenizer.from_pretrained(
            model_dir, revision=config.revision or "main", trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise _own_code(config, "its tokenizer is") from None
        raise ConfigError(f"policy.model={model_dir}: cannot load its tokenizer: {first_line(error)}") from error


def refuse_own_code(model_dir: Path | str, config: PolicyConfig) -> None:
    """Raises ConfigError where only Python code that lies beside a model can make it, and nobody has allowed that.

    Args:
        model_dir: a folder; a hub name is let through.
        config: ``trust_remote_code`` is read.
    """
    file = Path(model_dir) / "config.json"
    if not file.is_file():
        return
    layout = json.loads(file.read_text(encoding="utf-8"))
    elsewhere = [place for place in (layout.get("auto_map") or {}).values() if "--" in str(place)]
    if config.trust_remote_code and elsewhere:
        raise ConfigError(
            f"policy.model={config.model}: its code lies in another repository, {elsewhere[0]}, whose state no result "
            "could name; put that code beside the model"
        )
    if config.trust_remote_code:
        return
    if layout.get("auto_map") and layout.get("model_type") not in CONFIG_MAPPING:
        raise _own_code(config, "it is")


def _own_code(config: PolicyConfig, what: str) -> ConfigError:
    return ConfigError(
        f"policy.model={config.model}: {what} made by Python code that comes with it, which could do anything here; "
        "read that code, then allow it by policy.trust_remote_code=true, or take a model that transformers knows"
    )


def load_codec(model_dir: Path | str, config: PolicyConfig, instruction: str = "") -> TokenizerCodec:
    """The codec of the tokenizer beside the model; see `make_codec`.

    Raises:
        ConfigError: there is no tokenizer that can be loaded, or its template has no use for what is said.
    """
    return make_codec(load_tokenizer(model_dir, config), config, instruction)


def make_codec(
    tokenizer: Any,
    config: PolicyConfig,
    instruction: str = "",
    *,
    shots: tuple[Shot, ...] = (),
    answer_mark: AnswerMark | None = None,
) -> TokenizerCodec:
    """A tokenizer's codec as the settings have it.

    Args:
        tokenizer: see `load_tokenizer`.
        config: what is said around questions, and what ends answers.
        instruction: appended to every question; "" adds nothing.
        shots: see `Conversation`.
        answer_mark: of the dataset's answers; read where ``stop_after_answer`` is set.

    Raises:
        ConfigError: its chat template has no use for what is said.
    """
    next_question = () if tokenizer.chat_template else (PLAIN_STOP,)
    stop = StopRule((*config.stop, *next_question), answer_mark if config.stop_after_answer else None)
    conversation = Conversation(
        instruction=instruction,
        system=config.system_prompt,
        shots=shots,
        template_options=config.chat_template_kwargs,
        today=config.template_date,
    )
    return TokenizerCodec(tokenizer, conversation, stop=stop)
