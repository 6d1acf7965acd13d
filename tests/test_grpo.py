"""The outside baseline: TRL is asked, ended and graded as a search is, and what it trains is measured as a run's."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_fixtures import client, manifests
from transformers import AutoModelForCausalLM, GenerationConfig

from deployments.command.output.summary import summary_json
from deployments.presets import preset
from pipeline_lib.config import ConfigError, PipelineConfig, PolicyConfig, apply_overrides
from pipeline_lib.grading import GradingPool
from pipeline_lib.policy import FinishReason, SampleRequest, SamplingParams, sample_all
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.policy.prompting.stop_rule import NO_STOP, StopRule
from pipeline_lib.policy.protocol import text_of
from pipeline_lib.policy.tokenizers import load_tokenizer
from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy
from pipeline_lib.problems.tiny import make_problem
from pipeline_lib.store import Entry, read_json
from pipeline_lib.training.outside.grpo_config import GrpoConfig
from pipeline_lib.training.outside.grpo_rollouts import Answer, rewards_of, sample_answers
from pipeline_lib.types import PolicyRef, Ref, RunResult
from tasks.outside.grpo import check_grpo, train_grpo

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="needs the package trl: `make dev` adds it")

TOKENS = 300  # an update of 8 answers samples a little more
SMALL_GRPO = GrpoConfig(rollouts_per_problem=4, problems_per_update=2)
SMALL = (
    "num_iterations=2",
    "problems.num_problems=12",
    "problems.num_validation=4",
    "search.max_new_tokens=64",
    "evaluation.num_problems=4",
    "evaluation.num_samples=0",
)


def small_config() -> PipelineConfig:
    return apply_overrides(preset("tiny"), list(SMALL))


def test_settings_are_changed_by_name_and_a_slip_is_one_line() -> None:
    changed = apply_overrides(GrpoConfig(), ["beta=0.04", "problems_per_update=3"], option="--grpo")
    assert (changed.beta, changed.rollouts_per_update) == (0.04, 24)
    for slip, message in (
        ("betta=1", "--grpo betta=1: no setting is called 'betta'; the nearest is 'beta'"),
        ("beta=-1", "--grpo beta=-1: Input should be greater than or equal to 0"),
        ("beta", "--grpo beta: expected NAME=VALUE, for example beta=0.04"),
    ):
        with pytest.raises(ConfigError) as error:
            apply_overrides(GrpoConfig(), [slip], option="--grpo", example="beta=0.04")
        assert str(error.value) == message


def test_passes_of_an_update_are_alike() -> None:
    sizes = {problems: GrpoConfig(problems_per_update=problems, rollouts_per_pass=16).pass_size for problems in (1, 3)}
    assert sizes == {1: 8, 3: 12}
    assert GrpoConfig(rollouts_per_pass=1).pass_size == 1


@pytest.mark.parametrize(
    ("rule", "max_new_tokens"), [(NO_STOP, 64), (NO_STOP, 12), (StopRule(("\n",)), 64), (StopRule(("####",)), 64)]
)
def test_an_answer_ends_where_the_engine_that_searches_ends_it(rule: StopRule, max_new_tokens: int) -> None:
    tokenizer = load_tokenizer(TINY_BASE, PolicyConfig())
    codec = TokenizerCodec(tokenizer, stop=rule)
    prompts = [codec.encode_prompt(make_problem("tiny-word", "train", number).question) for number in range(6)]
    engine = TransformersPolicy(TINY_BASE, policy_id="base", config=PolicyConfig(), codec=codec)
    greedy = SamplingParams(max_new_tokens, 0.0)
    expected = sample_all(engine, [SampleRequest(str(n), prompt, greedy, 0) for n, prompt in enumerate(prompts)])
    model = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32, use_safetensors=True)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    generation = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=pad)
    answers = sample_answers(
        model, [p.tolist() for p in prompts], codec=codec, generation=generation, end_ids=[end], pad_id=pad
    )
    for number, answer in enumerate(answers):
        result = expected[str(number)]
        ends = [] if result.end_token_id is None else [result.end_token_id]
        assert answer.text == text_of(result, codec)
        assert answer.token_ids == [*result.token_ids.tolist(), *ends]
        assert answer.is_cut_off == (result.finish_reason is FinishReason.LENGTH)
        assert answer.num_sampled == len(result.token_ids) + result.num_beyond + len(ends)


@pytest.mark.parametrize(("truncated", "cut_off"), [("wrong", 0.0), ("grade", 1.0), ("ignore", None)])
def test_an_answer_is_worth_what_a_search_would_back_up(truncated: Any, cut_off: float | None) -> None:
    answers = [
        Answer([1], text, is_cut, 1) for text, is_cut in (("#### 4", False), ("#### 5", False), ("#### 4", True))
    ]
    with GradingPool() as grader:
        assert rewards_of(answers, ["4"] * 3, grader, truncated) == [1.0, 0.0, cut_off]


def test_what_cannot_be_trained_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, message in (
        ("train.full_finetuning=true", "the baseline trains adapters"),
        ("policy.backend=scripted", "GRPO trains one"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_grpo(apply_overrides(PipelineConfig(), [setting]))
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match=r'^baseline: trl is not installed; run .*"coppice-reasoning\[trl\]"$'):
        check_grpo(PipelineConfig())


@needs_trl
def test_a_key_holds_what_a_result_depends_on() -> None:
    ref = Ref(uri="draw-problems/key", sha256="0" * 64, num_rows=1, schema_version=1)
    base = PolicyRef(policy_id="p", base_model="tiny", iteration=0)

    def uri(*overrides: str, tokens: int = TOKENS, **grpo: Any) -> str:
        config = apply_overrides(PipelineConfig(), list(overrides))
        return train_grpo.uri(config=config, grpo=GrpoConfig(**grpo), problems=(ref,), policy=base, tokens=tokens)

    same = [uri(rollouts_per_pass=4), uri("policy.backend=vllm"), uri("train.learning_rate=1"), uri("search.c_uct=2")]
    assert set(same) == {uri()}
    others = [uri(beta=0.1), uri(tokens=1), uri("seed=1"), uri("num_iterations=1"), uri("search.temperature=0.5")]
    others += [uri("train.lora_rank=4"), uri("policy.instruction=Go."), uri("truncated=grade")]
    assert len({uri(), *others}) == len(others) + 1


class Killed(BaseException):
    """The end of a process, to all that it was doing."""


@pytest.fixture(scope="module")
def trained(prefect_api: str, new_home: Callable[[], Path]) -> tuple[Path, RunResult]:
    """A home in which the baseline has ended."""
    home = new_home()
    return home, baseline_in(home)


def baseline_in(home: Path) -> RunResult:
    from flows.grpo_baseline import grpo_baseline

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPPICE_HOME", str(home))
        result: RunResult = grpo_baseline(small_config(), SMALL_GRPO, TOKENS)
        return result


def entry_of(home: Path) -> Path:
    [manifest] = (home / "store" / "train-grpo").glob("*/manifest.json")
    return manifest.parent


@needs_trl
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's and Prefect's own
class TestTraining:
    def test_an_adapter_comes_with_each_budget_and_is_measured(self, trained: tuple[Path, RunResult]) -> None:
        home, result = trained
        curve = read_json(entry_of(home) / "curve.json")
        for number, point in enumerate(curve, 1):
            assert number * TOKENS <= point["tokens"] < number * TOKENS + SMALL_GRPO.rollouts_per_update * 64
            assert point["trained_tokens"] > point["tokens"]
        _, first, second = result.records
        assert second.search["tokens_generated"] == curve[1]["tokens"] - curve[0]["tokens"]
        assert first.train["updates"] + second.train["updates"] == curve[1]["updates"] >= 2
        assert all(record.seconds["train"] > 0 for record in (first, second))
        assert len({record.policy.policy_id for record in result.records}) == 3
        assert [len(record.evaluations) for record in result.records] == [3, 3, 3]
        written = summary_json(result, small_config())
        assert [one["train"]["updates"] for one in written["iterations"]] == [
            first.train["updates"],
            second.train["updates"],
        ]
        assert written["base"].keys() == {"tiny-word", "tiny-algebra"}

    def test_adapters_load_and_nothing_else_is_left(self, trained: tuple[Path, RunResult]) -> None:
        home, _ = trained
        names = {file.name for file in entry_of(home).rglob("*") if file.is_file()} - {".lock", ".owner"}
        of_store = {"manifest.json", "observations.json"}
        assert names - of_store == {"adapter_config.json", "adapter_model.safetensors", "curve.json"}
        codec = TokenizerCodec(load_tokenizer(TINY_BASE, PolicyConfig()))
        prompt = codec.encode_prompt(make_problem("tiny-word", "train", 0).question)
        adapter = entry_of(home) / "2" / "policy"
        policy = TransformersPolicy(TINY_BASE, adapter_dir=adapter, policy_id="2", config=PolicyConfig(), codec=codec)
        [answer] = sample_all(policy, [SampleRequest("0", prompt, SamplingParams(64, 0.0), 0)]).values()
        assert answer.finish_reason is FinishReason.STOP

    def test_a_killed_training_begins_anew_and_a_finished_one_is_found(
        self, trained: tuple[Path, RunResult], new_home: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home, result = trained
        other = new_home()
        with monkeypatch.context() as patch:
            patch.setattr("tasks.outside.grpo.Progress.reach", killed_after(1))
            with pytest.raises(Killed):
                baseline_in(other)
        baseline_in(other)
        assert manifests(other) == manifests(home)
        committed: list[str] = []
        monkeypatch.setattr(Entry, "commit", lambda entry, *_: committed.append(entry.uri))
        again = baseline_in(home)
        assert committed == []
        assert again.model_copy(update={"wall_s": result.wall_s}) == result

    def test_mlflow_has_one_run_with_a_step_per_adapter(self, trained: tuple[Path, RunResult]) -> None:
        home, result = trained
        assert result.tracking_run is not None
        mlflow = client(home)
        run = mlflow.get_run(result.tracking_run)
        assert (run.info.status, run.data.tags["coppice.baseline"]) == ("FINISHED", "trl-grpo")
        for metric, steps in (("eval/tiny-word/accuracy", [0, 1, 2]), ("train/reward", [1, 2])):
            assert [point.step for point in mlflow.get_metric_history(run.info.run_id, metric)] == steps
        sources = " ".join(item.dataset.source for item in run.inputs.dataset_inputs)
        assert all(f"{stage}/" in sources for stage in ("train-grpo", "draw-problems", "evaluate-policy"))

    def test_trl_trains_on_the_codecs_prompts_and_asks_nobody(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import trl

        from pipeline_lib.training.outside.grpo import Asking, TokenBudget
        from pipeline_lib.training.outside.grpo import train_grpo as train

        config, problems = small_config(), [make_problem("tiny-word", "train", number) for number in range(4)]
        codec = TokenizerCodec(load_tokenizer(TINY_BASE, PolicyConfig()), stop=StopRule(("\n",)))
        seen: list[tuple[list[int], list[int]]] = []
        compute_loss = trl.GRPOTrainer._compute_loss

        def looked_at(trainer: Any, model: Any, inputs: dict[str, torch.Tensor]) -> Any:
            columns = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
            for prompt, shown, answer, kept in zip(*(inputs[name] for name in columns), strict=True):
                seen.append((prompt[shown.bool()].tolist(), answer[kept.bool()].tolist()))
            return compute_loss(trainer, model, inputs)

        monkeypatch.setattr(trl.GRPOTrainer, "_compute_loss", looked_at)
        monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("something connects"))
        with GradingPool() as grader:
            points = train(
                problems,
                asking=Asking(codec, SamplingParams(64), grader, "wrong"),
                model_dir=TINY_BASE,
                output_dir=tmp_path,
                budget=TokenBudget(1, 2),
                config=SMALL_GRPO,
                train=config.train,
                policy=config.policy,
                seed=0,
            )
        assert [point.updates for point in points] == [1, 1]  # one update passed both budgets
        assert sorted(folder.name for folder in tmp_path.iterdir()) == ["1", "2"]
        asked = {tuple(codec.encode_prompt(problem.question).tolist()) for problem in problems}
        assert len(seen) == SMALL_GRPO.rollouts_per_update
        assert {tuple(prompt) for prompt, _ in seen} < asked
        assert all("\n" not in codec.decode(np.array(answer, dtype=np.int32)) for _, answer in seen)


def killed_after(count: int) -> Callable[..., None]:
    calls: list[int] = []

    def reach(progress: Any, completed: int) -> None:
        calls.append(completed)
        if progress.stage == "train grpo" and len(calls) > count:
            raise Killed

    return reach
