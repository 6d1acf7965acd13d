from __future__ import annotations

from pathlib import Path

import pytest

from pipeline_lib.problems.tiny.corpus import pretraining_corpus
from pipeline_lib.training.tiny_base.pretraining import PretrainingPlan, pretrain

PLAN = PretrainingPlan(
    num_updates=4, batch_size=4, tokenizer_pairs=40, vocab_size=300, num_layers=1, checkpoint_every=2
)


class Killed(Exception):
    pass


def build(folder: Path, *, die_after: int | None = None) -> bytes:
    def on_update(updates: int, loss: float) -> None:
        if updates == die_after:
            raise Killed

    def corpus(start):
        return pretraining_corpus(0, start=start)

    pretrain(corpus, PLAN, folder / "model", folder / "checkpoint", on_update=on_update)
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_pretraining_goes_on_and_ends_with_the_same_bytes(tmp_path):
    whole = build(tmp_path / "whole")
    with pytest.raises(Killed):
        build(tmp_path / "killed", die_after=3)
    assert build(tmp_path / "killed") == whole


@pytest.mark.slow
def test_the_base_is_a_normal_model_folder_whose_tokens_end_at_steps(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    build(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "Mia has 12-5=7 pens.\n\n#### 7 \\frac{1}{2} é\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    pieces = [tokenizer.decode([i]) for i in ids]
    assert all(piece in ("\n", piece.replace("\n", "")) for piece in pieces)
    assert sum(piece == "\n" for piece in pieces) == 3
    assert max(ids) < model.config.vocab_size
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2+2?"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|user|>2+2?<|assistant|>"
