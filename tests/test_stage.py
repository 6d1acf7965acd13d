from __future__ import annotations

import ast
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hub_fixtures import DATED_TEMPLATE, cache_model

from pipeline_lib.config import PipelineConfig, SearchConfig, apply_overrides, setting_names
from pipeline_lib.grading.grader import Grader
from pipeline_lib.policy.protocol import SamplingParams
from pipeline_lib.policy.scripted import CharCodec, ScriptedPolicy
from pipeline_lib.problems.tiny import error_prone_script, make_problem
from pipeline_lib.search import search_trees
from pipeline_lib.search.tree_files import tree_to_dict
from pipeline_lib.store import Entry
from pipeline_lib.types import Grade, IterationRecord, Ref
from tasks.runtime.stage import Done, Stage, seconds_of, stage

ROOT = Path(__file__).resolve().parents[1]

# Dials that no stage's result depends on, and where they act instead.
OUTSIDE_THE_STAGES = {
    "preset": "names the run and the registered model in MLflow",
    "name": "names the run",
    "num_iterations": "how often the flow's loop runs",
    "policy.device": "where the same numbers are computed",
    "policy.max_batch": "how many rows share a decode step; a row's result does not depend on the others",
    "policy.num_threads": "how many cores compute the same numbers",
    "runner": "where the same shards are searched",
    "policy.shot_levels": "read with num_shots alone: test_conversation.py",
    "search.spend_saved": "read with stop_after_equal alone: test_shards.py",
    "problems.curriculum": "what was asked before is in the keys: test_looking_back.py",
    "search.num_shards": "how many tasks search the same trees: test_shards.py",
    "ray.cpus_per_shard": "likewise",
    "ray.gpus_per_shard": "likewise",
    "ray.max_retries": "how often a shard whose worker died goes on",
    "policy.vllm.tensor_parallel": "likewise, on GPUs",
    "policy.vllm.pipeline_parallel": "likewise, on GPUs",
    "policy.vllm.gpu_memory_share": "how much is kept for reuse",
    "policy.vllm.kv_cache_gib": "likewise",
    "policy.vllm.block_tokens": "likewise",
    "policy.vllm.speculative": "tokens are drawn from the same distribution, sooner",
    "policy.vllm.enforce_eager": "how the same numbers are computed",
    "policy.vllm.merge_adapters": "how the same numbers are computed",
    "policy.vllm.keep_while_training": "when the engine ends",
    "policy.server.urls": "where the same numbers are computed",
    "policy.server.model_name": "likewise",
    "policy.server.timeout_s": "how soon another server is asked",
    "policy.server.patience_s": "when a run without servers gives up",
    "policy.server.recheck_s": "how soon a server is used again",
    "policy.server.retries": "how often a request that servers die of is tried",
    "policy.trust_remote_code": "the model has no code of its own: test_own_code.py",
    "policy.max_failed_share": "when a stage ends without a result",
    "gate.continue_from": "whose policy the next iteration searches with; that policy's id is in its keys",
    "train.checkpoint_every": "how much a killed training repeats",
    "train.dpo_beta": "step-dpo alone reads it: test_keys.py",
    "train.weighting_temperature": "weighting=exp alone reads it: test_keys.py",
    "train.replay_iterations": "the trees that are replayed are in its keys: test_looking_back.py",
    "train.tokens_per_microbatch": "how much of the same update is computed at a time",
    "train.gradient_checkpointing": "how much memory the same gradients take",
    "train.num_processes": "where the same gradients are computed",
    "train.shard_weights": "likewise",
}
# Values for dials that are no number and no switch; `{other}` is a second file of problems.
OTHER_VALUES = {
    "preset": "other",
    "name": "mine",
    "runner": "ray",
    "grader": "operator:eq",
    "truncated": "grade",
    "evaluation.grader": "operator:eq",
    "problems.dataset": "math",
    "problems.path": "{other}",
    "problems.columns.question": "prompt",
    "problems.columns.answer": "reward_model.ground_truth",
    "problems.validation_path": "{other}",
    "problems.on_bad_row": "refuse",
    "policy.backend": "scripted",
    "policy.model": "owner/other",
    "policy.revision": "abc",
    "policy.device": "cuda",
    "policy.dtype": "bfloat16",
    "policy.instruction": "Think.",
    "policy.template_date": "2025-01-01",
    "policy.stop": "Question:",
    "policy.shot_levels": '["1"]',
    "policy.system_prompt": "Be brief.",
    "policy.chat_template_kwargs": '{"enable_thinking": false}',
    "search.step_delimiter": "sentence",
    "search.selection": "frontier",
    "search.stop_after_equal": 4,
    "search.shot_levels": '[["none"]]',
    "search.spend_saved": "undecided",
    "problems.curriculum": "informative",
    "policy.vllm.kv_cache_gib": 2,
    "policy.vllm.block_tokens": 64,
    "policy.vllm.quantization": "fp8",
    "policy.vllm.speculative": '{"method": "ngram"}',
    "policy.vllm.enforce_eager": False,
    "policy.vllm.merge_adapters": False,
    "policy.server.urls": "http://127.0.0.1:8000",
    "policy.server.model_name": "base",
    "search.max_tokens_per_problem": 9,
    "score.baseline": "group",
    "train.lora_scaling": "sqrt_rank",
    "train.learning_rate_schedule": "linear",
    "train.lora_targets": "attention",
    "train.start": "base",
    "train.reference": "base",
    "train.kl_on": "path",
    "train.weighting": "sign",
    "train.soft_clip": 2,
    "train.ratio_clip": 0.2,
    "score.scaling": "sqrt",
    "train.objective": "rft",
    "train.kl_beta": 0.5,
    "evaluation.datasets": '["tiny-word"]',
    "evaluation.pass_k": "1",
    "gate.continue_from": "last",
    "grading.any_order": False,
    "grading.percent": "unit",
    "grading.ignore_units": False,
    "grading.rounded": True,
    "grading.mixed_numbers": False,
    "grading.last_number": True,
    "grading.cut_thoughts": False,
    "grading.positive_letters": True,
    "grading.log_base": "e",
    "grading.choice_text": False,
    "grading.announced_gold": False,
}


def write_problems(path: Path, question: str) -> Path:
    texts = [question, *(f"{question} {number}" for number in range(5))]
    rows = [json.dumps({"question": text, "problem": text, "answer": "1"}) + "\n" for text in texts]
    path.write_text("".join(rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commits = {("owner/name", "main"): "1" * 40, ("owner/name", "abc"): "2" * 40, ("owner/other", "main"): "3" * 40}
    for (name, ref), commit in commits.items():
        cache_model(tmp_path / "hub", name, commit, ref=ref, template=DATED_TEMPLATE)
    return write_problems(tmp_path / "own.jsonl", "q"), write_problems(tmp_path / "other.jsonl", "r")


def config_for(path: Path) -> PipelineConfig:
    data = ["problems.dataset=file", f"problems.path={path}", "problems.num_validation=1"]
    return apply_overrides(PipelineConfig(), [*data, "policy.model=owner/name", "evaluation.num_samples=2"])


def entries(config: PipelineConfig) -> set[str]:
    """Where the stages of one iteration would put their results."""
    from tasks.audit import audit_iteration
    from tasks.evaluate import evaluate_policy
    from tasks.gate import decide_gate
    from tasks.problems import draw_problems, draw_test_problems
    from tasks.runtime.policies import base_policy
    from tasks.score import score_steps
    from tasks.search import gather_trees
    from tasks.train import train_policy

    ref = Ref(uri="stage/key", sha256="0" * 64, num_rows=1, schema_version=1)
    policy = base_policy(config)
    of_all = {"config": config, "iteration": 1}
    found = [
        draw_problems.entry(**of_all),
        gather_trees.entry(**of_all, problems=ref, policy=policy, earlier=()),
        score_steps.entry(**of_all, trees=(ref,)),
        audit_iteration.entry(**of_all, trees=(ref,), scores=ref, earlier=()),
        train_policy.entry(**of_all, trees=(ref,), scores=ref, policy=policy),
        evaluate_policy.entry(config=config, problems=ref, policy=policy, split="test", name="any"),
        decide_gate.entry(config=config, records=[IterationRecord(index=0, policy=policy)]),
    ]
    for name in config.evaluation.datasets:
        found.append(draw_test_problems.entry(config=config, dataset=name, path=None))
    return {entry.uri for entry in found}


def other_value(config: PipelineConfig, name: str, other: Path) -> Any:
    if name in OTHER_VALUES:
        value = OTHER_VALUES[name]
        return str(other) if value == "{other}" else value
    value = config
    for part in name.split("."):
        value = getattr(value, part)
    if isinstance(value, bool):
        return json.dumps(not value)
    return value + 1 if isinstance(value, int) else value * 0.5 + 0.01  # type: ignore[operator]


def test_every_dial_reaches_a_stage_or_is_known_not_to(files: tuple[Path, Path]) -> None:
    path, other = files
    config = config_for(path)
    plain = entries(config)
    assert entries(config) == plain
    without_effect = {
        name
        for name in setting_names()
        if entries(apply_overrides(config, [f"{name}={other_value(config, name, other)}"])) == plain
    }
    assert without_effect == set(OUTSIDE_THE_STAGES)


def test_every_dial_is_read_somewhere() -> None:
    modules = [path for room in ("pipeline_lib", "tasks", "flows") for path in (ROOT / room).rglob("*.py")]
    read = {
        node.attr
        for path in modules
        if path.name != "config.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert [name for name in setting_names() if name.rpartition(".")[2] not in read] == []


class RecordingPolicy(ScriptedPolicy):
    """Remembers how it was asked to sample."""

    asked: set[SamplingParams]

    def submit(self, requests: Any) -> None:
        self.asked = getattr(self, "asked", set()) | {request.params for request in requests}
        super().submit(requests)


class InstantGrader(Grader):
    """Right when the last line is the gold's."""

    def __init__(self) -> None:
        self.graded: list[tuple[str, Grade]] = []

    @property
    def num_in_flight(self) -> int:
        return len(self.graded)

    def submit(self, key: str, prediction: str, gold: str) -> None:
        self.graded.append((key, Grade.CORRECT if prediction.endswith(f"#### {gold}") else Grade.WRONG))

    def poll(self, *, block: bool) -> list[tuple[str, Grade]]:
        graded, self.graded = self.graded, []
        return graded


def searched(config: SearchConfig) -> tuple[dict[str, Any], set[SamplingParams]]:
    problems = [make_problem("tiny-word", "train", i) for i in range(8)]
    policy = RecordingPolicy(error_prone_script(problems, lambda question: question), CharCodec())
    trees: dict[str, Any] = {}
    search_trees(
        problems,
        policy,
        InstantGrader(),
        config,
        seed=0,
        on_tree=lambda tree: trees.update({tree.problem_id: tree_to_dict(tree)}),
    )
    return trees, policy.asked


def test_every_search_dial_changes_the_search() -> None:
    config = SearchConfig(num_simulations=24)
    changes: dict[str, Any] = {
        "num_simulations": 25,
        "num_candidates": 2,
        "c_uct": 0.1,
        "parallel_simulations": 1,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "max_depth": 2,
        "max_new_tokens": 40,
        "max_step_tokens": 10,
        "max_tokens_per_problem": 200,
        "step_delimiter": "=",
        "selection": "frontier",
        "stop_after_equal": 2,
    }
    # markdown_steps in test_search_markdown.py: nothing here is left open; spend_saved in test_shards.py;
    # shot_levels in test_search_scheduler.py, temperature_rise in test_search_dials.py
    elsewhere = {"num_shards", "markdown_steps", "spend_saved", "shot_levels", "temperature_rise"}
    assert set(changes) == set(SearchConfig.model_fields) - elsewhere
    plain = searched(config)
    assert searched(config) == plain
    assert [name for name in changes if searched(config.model_copy(update={name: changes[name]})) == plain] == []


def test_the_same_rows_elsewhere_are_the_same_problems(files: tuple[Path, Path], tmp_path: Path) -> None:
    from tasks.problems import draw_problems

    path, _ = files
    before = draw_problems.entry(config=config_for(path), iteration=1).uri
    moved = path.rename(tmp_path / "moved.jsonl")
    assert draw_problems.entry(config=config_for(moved), iteration=1).uri == before
    write_problems(moved, "another question")
    assert draw_problems.entry(config=config_for(moved), iteration=1).uri != before


SLEEP_S = 0.05


def make_stage(version: int = 1) -> Stage[Any, Ref]:
    def body(entry: Entry, *, inputs: tuple[Ref, ...], number: int) -> Done:
        (entry.path / "number.json").write_text(str(number))
        time.sleep(SLEEP_S)
        return Done(number, {"rate": 1.5})

    return stage(lambda *, inputs, number: {"number": number}, version=version, run_name="any")(body)


def test_a_result_is_named_by_spec_inputs_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path))
    first, second = (Ref(uri=f"s/{x}", sha256=x * 64, num_rows=1, schema_version=1) for x in "ab")

    def uri(*inputs: Ref, number: int = 1, version: int = 1) -> str:
        return make_stage(version).entry(inputs=inputs, number=number).uri

    assert uri(first) == uri(first)
    assert uri(first) == uri(first.model_copy(update={"uri": "elsewhere"}))
    different = [uri(first), uri(second), uri(first, second), uri(second, first), uri(first, number=2)]
    assert len({*different, uri(first, version=2)}) == 6


def test_a_stage_is_measured_and_committed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPPICE_HOME", str(tmp_path))
    made = make_stage()
    run = made._task.fn  # as a worker calls it, without a server
    entry = made.entry(inputs=(), number=3)
    assert run(inputs=(), number=3) == entry.ref().model_dump()
    assert entry.ref().num_rows == 3
    assert seconds_of(entry.ref()) > SLEEP_S
    assert entry.observations() == {"rate": 1.5, "stage_seconds": seconds_of(entry.ref())}
    assert run(inputs=(), number=3).name == "Cached"
