"""Before any GPU time: prompts fit into the context, the template leads to an answer, and something ends it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deployments.preflight.check import CHECKS, run_checks
from deployments.presets import preset
from pipeline_lib.config import ConfigError, PipelineConfig, PolicyConfig, Settings, apply_overrides
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.types import Problem

pytestmark = pytest.mark.slow  # most of it is the import of torch

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DEAF = "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}go"


def config_with(tmp_path: Path, *overrides: str, train: str = "How many?", test: str = "How much?") -> PipelineConfig:
    for name, long in (("train", train), ("test", test)):
        texts = [long, *(f"{name} {i}?" for i in range(12))]
        rows = [json.dumps({"question": text, "answer": "1"}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    file = ("problems.dataset=file", f"problems.path={tmp_path}", f"evaluation.datasets=file={tmp_path}")
    more = ("problems.num_validation=4", "policy.max_context_tokens=512", "policy.instruction=Think.")
    return apply_overrides(preset("tiny"), [*file, *more, *overrides])


def prompts_line(config: PipelineConfig, patch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Verdict and text of `coppice check` on the prompts."""
    few = tuple(check for check in CHECKS if check.name in ("problems", "prompts"))
    patch.setattr("deployments.preflight.check.CHECKS", few)
    line = list(run_checks(config, Settings()))[-1]
    return line.verdict, line.text


@pytest.mark.parametrize("where", ["train", "test"])
def test_a_run_says_what_the_check_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    from tasks.runtime.prompts import check_prompts

    short = config_with(tmp_path)
    check_prompts(short)
    assert prompts_line(short, monkeypatch)[0] == "ok"
    too_long = config_with(tmp_path, **{where: "Why? " * 90})
    with pytest.raises(
        ConfigError, match=rf"^file/{where}/00000: a prompt of .* raise it to \d+, or drop the row$"
    ) as caught:
        check_prompts(too_long)
    assert prompts_line(too_long, monkeypatch) == ("problem", str(caught.value))
    if where == "test":
        check_prompts(too_long, ["train", "validation"])
        check_prompts(apply_overrides(too_long, ["evaluation.max_new_tokens=1"]))
    else:
        check_prompts(too_long, ["test"])


def test_only_a_row_of_the_users_own_files_can_be_dropped(tmp_path: Path) -> None:
    from tasks.runtime.prompts import measure_prompts

    long = "Why? " * 90
    own = f"evaluation.datasets=file={tmp_path}"
    cases = {
        ("file/train/00000", "file", "problems.path=hub:owner/name"): False,
        ("file/validation/00000", "file", "problems.path=hub:owner/name"): False,
        ("file/test/00000", "file", "evaluation.datasets=file=hub:owner/name"): False,
        ("gsm8k/test/00000", "gsm8k", "evaluation.datasets=gsm8k"): False,
        ("tiny-word/test/00000", "tiny-word", "evaluation.datasets=tiny-word"): False,
        ("file/validation/00000", "file", "problems.validation_path=hub:owner/name"): False,
        ("file/train/00000", "file", own): True,
        ("file/test/00000", "file", own): True,
    }
    for (problem_id, dataset, override), can_drop in cases.items():
        config = config_with(tmp_path, override)
        with pytest.raises(ConfigError, match=r"raise it to \d+(, or drop the row)?$") as caught:
            measure_prompts(config, [("evaluation", [Problem(problem_id, long, "1", dataset)])])
        assert str(caught.value).endswith(", or drop the row") == can_drop, problem_id


def model_with(tmp_path: Path, *, template: str | None = None, end: bool = True) -> Path:
    """The embedded base with another template, or with nothing that ends an answer."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_BASE, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    for name in () if end else ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**values, "eos_token": None, "eos_token_id": None}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": CHATML + HEADER}, None),
        ({"template": INST}, None),
        ({"template": CHATML}, "ignores add_generation_prompt, so a prompt ends before '<|im_start|>assistant'"),
        ({"template": DEAF}, "drops the user's question"),
        ({"end": False}, "names an end token, so no answer would end"),
    ],
)
def test_a_model_that_cannot_answer_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str | None
) -> None:
    config = config_with(tmp_path, f"policy.model={model_with(tmp_path, **changes)}")
    verdict, text = prompts_line(config, monkeypatch)
    assert verdict == ("ok" if message is None else "problem")
    assert message is None or (message in text and "\n" not in text)


def test_a_list_of_end_tokens_is_one(tmp_path: Path) -> None:
    from pipeline_lib.policy.template_checks import check_end_token
    from pipeline_lib.policy.tokenizers import load_tokenizer

    folder = model_with(tmp_path, end=False)
    tokenizer = load_tokenizer(folder, PolicyConfig())
    with pytest.raises(ConfigError, match="names an end token"):
        check_end_token(folder, tokenizer)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    check_end_token(folder, tokenizer)
