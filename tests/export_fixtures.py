"""Homes whose registry has a champion, on each kind of base; what plain programs answer with what came out of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from hub_fixtures import cache_model
from record_fixtures import make_record
from vllm_fixtures import Answers, answers, tiny_requests, transformers_policy, write_adapter

from pipeline_lib.config import PipelineConfig, Settings, apply_overrides
from pipeline_lib.policy.model_folders import TINY_BASE, fingerprint
from pipeline_lib.problems.tiny import make_problem
from pipeline_lib.tracking import IterationContents, Tracker
from pipeline_lib.types import GateDecision, IterationRecord, PolicyRef, RunResult

COMMIT = "c" * 40
HUB_NAME = "somebody/tiny"
NUM_PROBLEMS, MAX_NEW_TOKENS = 2, 40
# What a user's own program does, from any folder; each kind of model answers the same questions greedily.
PLAIN_PROGRAM = """
import json, sys
import mlflow
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, pipeline

def answer(model, tokenizer, question):
    chat = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**ids, max_new_tokens=order["max_new_tokens"], do_sample=False)
    return made[0, ids["input_ids"].shape[1]:].tolist()

order = json.load(sys.stdin)
found = {}
for name in order["adapters"]:
    folder = mlflow.artifacts.download_artifacts(name) if name.startswith("models:/") else name
    policy = AutoPeftModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(order["tokenizer"])
    found[name] = [answer(policy, tokenizer, question) for question in order["questions"]]
for name in order["models"]:
    ask = pipeline("text-generation", name)
    found[name] = []
    for question in order["questions"]:
        chat = ask.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False)
        [whole] = ask(chat, max_new_tokens=order["max_new_tokens"], do_sample=False, return_tensors=True)
        found[name].append(whole["generated_token_ids"][len(ask.tokenizer(chat)["input_ids"]):])
json.dump(found, open(order["output"], "w"))
"""


def champion_on(settings: Settings, folder: Path, *, preset: str, model: str, revision: str | None = None) -> Path:
    """Registers an adapter of the embedded base, under whatever name, as champion of a preset; returns its folder."""
    adapter = write_adapter(folder / preset, seed=sum(map(ord, preset)), scale=0.3)
    file = adapter / "adapter_config.json"
    as_trained = json.loads(file.read_text()) | {"base_model_name_or_path": Path(model).name}
    file.write_text(json.dumps(as_trained, indent=2, sort_keys=True) + "\n")
    policy = PolicyRef(
        policy_id=fingerprint(adapter),
        base_model=model,
        revision=revision,
        adapter_uri="train-policy/x",
        iteration=1,
    )
    register(settings, preset, model, policy, adapter)
    return adapter


def register(settings: Settings, preset: str, model: str, policy: PolicyRef, files: Path) -> None:
    """A finished run whose first iteration, the policy in these files, was chosen."""
    config = apply_overrides(PipelineConfig(preset=preset), [f"policy.model={json.dumps(model)}"])
    base = PolicyRef(policy_id=f"base-{preset}", base_model=model, iteration=0)
    records: list[IterationRecord] = [
        make_record(0).model_copy(update={"policy": base}),
        make_record(1, 0.7).model_copy(update={"policy": policy}),
    ]
    decision = GateDecision(proceed=False, champion=1, reason="the best")
    tracker = Tracker.open(settings, run_key=preset, run_name=preset, config=config)
    tracker.log_iteration(records[1], IterationContents(adapter=files, parent=base))
    promotion = tracker.apply_gate_decision(records, decision)
    tracker.finish(
        RunResult(
            records=tuple(records),
            decision=decision,
            stopped_because="the end",
            wall_s=1.0,
            tracking_run=tracker.run_id,
            promotion=promotion,
        )
    )


def hub_cache(home: Path) -> Path:
    """``HF_HOME`` with the embedded base in its cache, under a hub name."""
    snapshot = cache_model(home / "hub", HUB_NAME, COMMIT)
    shutil.copy(TINY_BASE / "model.safetensors", snapshot / "model.safetensors")
    return home


def plain_answers(
    folder: Path, *, adapters: list[str], models: list[str], tokenizer: Path, **environment: str
) -> dict[str, list[list[int]]]:
    """What `PLAIN_PROGRAM` answers in a process of its own, in another folder and without Coppice's variables."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    output = folder / "answers.json"
    questions = [make_problem("tiny-word", "test", index).question for index in range(NUM_PROBLEMS)]
    order = {
        "adapters": adapters,
        "models": models,
        "questions": questions,
        "tokenizer": str(tokenizer),
        "max_new_tokens": MAX_NEW_TOKENS,
        "output": str(output),
    }
    ours = ("COPPICE_", "PYTHONPATH")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_PROGRAM],
        cwd=elsewhere,
        env={**plain, **environment},
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[list[int]]] = json.loads(output.read_text())
    return found


def expected_answers(adapter: Path | None) -> list[list[int]]:
    """What Coppice's own engine answers to the same questions, with the token that ends each."""
    policy = transformers_policy(adapter)
    found: Answers = answers(policy, tiny_requests(policy, NUM_PROBLEMS, max_new_tokens=MAX_NEW_TOKENS))
    end = policy.codec.tokenizer.eos_token_id  # type: ignore[attr-defined]
    return [[*tokens, *([end] if why == "stop" else [])] for _, (why, tokens) in sorted(found.items())]
