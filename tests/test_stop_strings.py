"""What ends an answer besides end tokens: found alike by all engines, kept in trees as it was, taught as nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoint_fixtures import ScriptedEndpoint, server_config, server_policy
from policy_fixtures import make_requests, write_model
from search_fixtures import LateGrader, as_dicts, make_problems
from training_fixtures import EOS, make_tree
from vllm_fixtures import NEEDS_VLLM, tiny_requests, transformers_policy

from pipeline_lib.config import (
    ConfigError,
    EvaluationConfig,
    PipelineConfig,
    PolicyConfig,
    SearchConfig,
    TrainConfig,
    apply_overrides,
)
from pipeline_lib.evaluation import evaluate
from pipeline_lib.grading import extract_answer
from pipeline_lib.policy import FinishReason, Policy, SampleRequest, SampleResult, SamplingParams, sample_all
from pipeline_lib.policy.model_folders import TINY_BASE
from pipeline_lib.policy.prompting.stop_rule import AnswerEnd, StopRule, end_of_answer
from pipeline_lib.policy.protocol import text_of
from pipeline_lib.policy.scripted import CharCodec, ScriptedPolicy
from pipeline_lib.policy.tokenizers import load_codec, load_tokenizer, make_codec
from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy
from pipeline_lib.problems.formats import answer_mark
from pipeline_lib.problems.tiny import make_problem
from pipeline_lib.search import Step, TreeBuilder, TreeWriter, read_trees, rollout_from_result, search_trees
from pipeline_lib.search.tree_files import tree_from_dict, tree_to_dict
from pipeline_lib.training.loop import pack_examples
from pipeline_lib.types import STOPPED, Outcome, Problem, SearchTree, TrainingExample
from tasks.runtime.engines import engine_spec, engines, open_policy
from tasks.runtime.policies import base_policy

QUESTION = StopRule(("\nQ:", "User"))
HASHES, BOX = StopRule(answer_mark="hashes"), StopRule(answer_mark="box")


@pytest.mark.parametrize(
    ("rule", "text", "end"),
    [
        (QUESTION, "#### 4\n\nQ: 2+2", 6),  # white space before it is no part of the answer
        (QUESTION, "4 User\nQ:", 1),  # the one that is complete first
        (StopRule(("User", "\nUser:")), "4\nUser: 2", 1),
        (StopRule(("b", "abc")), "xabc", 2),
        (QUESTION, "Q: 2+2", None),
        (HASHES, "2+2=4\n#### 4\nSo", 12),
        (HASHES, "#### 4", None),  # `#### 42` may follow
        (HASHES, "#### Step 1\n2+2=4\n#### **$4**\n", 29),
        (BOX, "so \\boxed{\\frac{1}{2}}.\nDone", 23),
        (BOX, "\\boxed{\n4\n}\nDone", 11),
        (BOX, "#### 4\n", None),
    ],
)
def test_an_answer_ends_where_the_rule_says(rule: StopRule, text: str, end: int | None) -> None:
    assert rule.first_end(text) == end


def test_what_was_complete_before_ends_nothing() -> None:
    assert QUESTION.first_end("4\nQ: 5", start=4) is None
    assert QUESTION.first_end("4\nQ: 5\nQ:", start=4) == 6
    assert QUESTION.first_end("4\nQ:", start=3) == 1
    assert HASHES.first_end("#### 4\n#### 5\n", start=7) == 13
    assert HASHES.first_end("#### 4\n#### 5\n", start=6) == 6


class TableCodec:
    """Token i is piece i."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, token_ids: np.ndarray) -> str:
        return "".join(self.pieces[i] for i in token_ids.tolist())


def end_in(codec: TableCodec, rule: StopRule, ids: Sequence[int], prefix: Sequence[int] = ()) -> AnswerEnd | None:
    request = SampleRequest("a", np.array([0, *prefix], np.int32), SamplingParams(9), 0, num_prefix_tokens=len(prefix))
    return end_of_answer(np.array(ids, np.int32), request, codec, rule)  # type: ignore[arg-type]


def test_a_token_that_spells_the_answers_end_and_the_stop_is_kept_whole() -> None:
    codec = TableCodec("?", "so \\boxed{4", "}\n\n", "Q", ":", "\nQ: ", "x\nQ:")
    assert end_in(codec, StopRule(("\n\nQ:",)), [1, 2, 3, 4]) == (2, len("so \\boxed{4}"))
    assert end_in(codec, QUESTION, [1, 6]) == (2, len("so \\boxed{4x"))
    assert end_in(codec, QUESTION, [1, 5]) == (1, len("so \\boxed{4"))
    assert end_in(codec, QUESTION, [1, 2, 3]) is None


def test_a_stop_may_begin_in_the_prefix_but_not_in_the_prompt() -> None:
    codec = TableCodec("ask\n", "4\n", "Q:", "5")
    assert end_in(codec, QUESTION, [2, 3], prefix=[1]) == (0, 0)
    assert end_in(codec, QUESTION, [2, 3]) is None
    assert end_in(codec, QUESTION, [3, 1, 2], prefix=[3]) == (2, 2)


def test_the_last_steps_text_ends_with_the_answer() -> None:
    codec = TableCodec("1+1=2\n", "#### 2.", ".\n\nQ")
    steps = [Step("1+1=2\n", np.array([0], np.int32)), Step("#### 2..\n\nQ", np.array([1, 2], np.int32))]
    result = SampleResult("a", np.array([0, 1, 2], np.int32), FinishReason.STOP, num_chars=14, num_beyond=2)
    limits = {"depth": 0, "max_new_tokens": 9, "config": SearchConfig()}
    rollout = rollout_from_result(result, lambda _: list(steps), codec, **limits)  # type: ignore[arg-type]
    assert [step.text for step in rollout.steps] == ["1+1=2\n", "#### 2.."]
    assert [step.token_ids.tolist() for step in rollout.steps] == [[0], [1, 2]]
    assert (rollout.end_token_id, rollout.outcome, rollout.num_tokens) == (STOPPED, Outcome.OPEN, 5)


# --- engines -------------------------------------------------------------------------------------------------------


def cut_afterwards(policy: Policy, requests: Sequence[SampleRequest], rule: StopRule) -> dict[str, tuple[object, ...]]:
    """What an engine without the rule answers, cut by it: reason, tokens, characters and end token."""
    found: dict[str, tuple[object, ...]] = {}
    answers = sample_all(policy, requests)
    for request in requests:
        result = answers[request.request_id]
        ids, end = result.token_ids, end_of_answer(result.token_ids, request, policy.codec, rule)
        whole = (result.finish_reason, ids.tolist(), None, result.end_token_id)
        cut = end and (FinishReason.STOP, ids[: end.num_tokens].tolist(), end.num_chars, None)
        found[request.request_id] = cut or whole
    return found


def as_sampled(policy: Policy, requests: Sequence[SampleRequest]) -> dict[str, tuple[object, ...]]:
    return {
        name: (result.finish_reason, result.token_ids.tolist(), result.num_chars, result.end_token_id)
        for name, result in sample_all(policy, requests).items()
    }


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), seed=3)


def open_model(folder: Path, *stop: str) -> TransformersPolicy:
    config = PolicyConfig(model=str(folder), max_batch=16, device="cpu", stop=stop)
    return TransformersPolicy(folder, policy_id="test", config=config, codec=load_codec(folder, config))


def test_the_transformers_engine_stops_where_its_whole_answer_would_be_cut(model_dir: Path) -> None:
    requests = make_requests(80, temperature=1.5)
    prefixed = [
        SampleRequest(r.request_id, r.token_ids, r.params, r.seed, num_prefix_tokens=index % 4)
        for index, r in enumerate(requests)
    ]
    free, stopped = open_model(model_dir), open_model(model_dir, "ab", "e", "7 ")
    assert free.batch_invariant
    expected = cut_afterwards(free, prefixed, StopRule(("ab", "e", "7 ")))
    assert as_sampled(stopped, prefixed) == expected
    num_stopped = sum(num_chars is not None for _, _, num_chars, _ in expected.values())
    assert 10 < num_stopped < 80
    assert stopped.stats.tokens_generated < free.stats.tokens_generated


def test_with_the_tokens_bytes_known_it_stops_at_the_same_places() -> None:
    """The embedded base, whose tokenizer's bytes are known: few tokens are looked at."""
    free = transformers_policy()
    requests = tiny_requests(free, 40)
    whole = sample_all(free, requests)
    line = next(text for r in whole.values() if "\n" in (text := free.codec.decode(r.token_ids)))
    for rule in (StopRule(("=",)), StopRule((line[2:5], "\n###")), HASHES):
        config = PolicyConfig(model="tiny", device="cpu", stop=rule.strings, stop_after_answer=bool(rule.answer_mark))
        codec = make_codec(load_tokenizer(TINY_BASE, config), config, answer_mark=rule.answer_mark)
        stopped = TransformersPolicy(TINY_BASE, policy_id="test", config=config, codec=codec)
        assert codec.spelling is not None
        assert as_sampled(stopped, requests) == cut_afterwards(free, requests, rule)
        stopped.close()


def test_a_script_is_cut_and_not_truncated() -> None:
    codec = CharCodec(StopRule(("\nQ:",)))
    policy = ScriptedPolicy(lambda *_: "#### 2 \nQ: 1+1?" + "x" * 90, codec, end_token_ids=[7])
    request = SampleRequest("a", codec.encode_prompt("q"), SamplingParams(20), 0)
    result = sample_all(policy, [request])["a"]
    assert (result.finish_reason, text_of(result, codec)) == (FinishReason.STOP, "#### 2")
    assert (result.end_token_id, len(result.token_ids), result.num_beyond) == (None, 6, 14)
    short = SampleRequest("b", codec.encode_prompt("q"), SamplingParams(5), 0)
    assert sample_all(policy, [short])["b"].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("reply", ["stop", "length"])
def test_a_server_is_told_the_strings_and_its_answer_is_cut_alike(reply: str) -> None:
    codec = load_codec(TINY_BASE, PolicyConfig())
    ids = codec.encode("1+1=2\n#### 2\nQ: 1").tolist()
    choice = {"token_ids": ids, "finish_reason": reply, "stop_reason": "Q:" if reply == "stop" else None}
    bodies = list[dict[str, Any]]()

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        if "seed" not in body:
            return None
        bodies.append(body)
        return 200, {"choices": [choice]}

    endpoint = ScriptedEndpoint(intercept=answer)
    config = server_config(endpoint.url).model_copy(update={"stop": ("Q:",)})
    try:
        with server_policy(config) as policy:
            asked = SampleRequest("a", np.array([5, 6], dtype=np.int32), SamplingParams(20), 1)
            result = sample_all(policy, [asked])["a"]
            assert text_of(result, policy.codec) == "1+1=2\n#### 2"
    finally:
        endpoint.stop()
    assert bodies[0]["stop"] == ["Q:"]
    assert (result.finish_reason, result.end_token_id) == (FinishReason.STOP, None)


def test_an_answer_that_only_a_server_sees_end_has_no_end_token() -> None:
    choice = {"token_ids": [5, 6, 7], "finish_reason": "stop", "stop_reason": "Q:"}
    endpoint = ScriptedEndpoint(intercept=lambda path, body: (200, {"choices": [choice]}) if "seed" in body else None)
    try:
        with server_policy(server_config(endpoint.url).model_copy(update={"stop": ("Q:",)})) as policy:
            asked = SampleRequest("a", np.array([5, 6], dtype=np.int32), SamplingParams(20), 1)
            result = sample_all(policy, [asked])["a"]
            assert result.num_chars == len(policy.codec.decode(np.array([5, 6, 7], np.int32)))
    finally:
        endpoint.stop()
    assert result.token_ids.tolist() == [5, 6, 7]


# --- search, training, evaluation ----------------------------------------------------------------------------------


def running_on(prompt: str, prefix: str, seed: int) -> str:
    """Lines of a digit, then an answer, then what small models go on with."""
    lines = "".join(f"{(seed >> shift) % 3}\n" for shift in range(0, seed % 3))
    answer = f"#{1 + seed % 2}"
    return f"{lines}{answer}\n" + ("Q: and now?\n" + "x" * 300 if seed % 5 else "")


@pytest.fixture(scope="module")
def trees() -> list[SearchTree]:
    policy = ScriptedPolicy(running_on, CharCodec(StopRule(("\nQ:", "\nX"))), end_token_ids=[1], max_context_tokens=900)
    found = list[SearchTree]()
    config = SearchConfig(num_simulations=24, max_new_tokens=100)
    search_trees(make_problems(6), policy, LateGrader(), config, seed=0, on_tree=found.append)
    return sorted(found, key=lambda tree: tree.problem_id)


def ended(tree: SearchTree, by: int) -> list[int]:
    return np.flatnonzero(tree.end_token_ids == by).tolist()


def test_a_tree_holds_the_answer_and_no_end_token(trees: list[SearchTree]) -> None:
    stopped = [(tree, node) for tree in trees for node in ended(tree, STOPPED)]
    assert len(stopped) > 10
    assert any(ended(tree, 1) for tree in trees)
    for tree, node in stopped:
        assert tree.outcomes[node] in (Outcome.CORRECT, Outcome.WRONG)
        assert tree.steps[node] in ("#1", "#2")
        assert CharCodec().decode(tree.token_ids[node]) == tree.steps[node]
        assert not tree.cutoffs[node]


def test_tokens_past_a_stop_are_counted_as_sampled_and_not_kept(trees: list[SearchTree]) -> None:
    assert all(tree.tokens_generated > tree.tokens_kept for tree in trees)


def test_no_token_is_taught_as_the_end_of_what_a_stop_string_ended(trees: list[SearchTree]) -> None:
    for tree in trees:
        for end in (STOPPED, 1):
            for node in ended(tree, end):
                example = TrainingExample(tree, np.eye(tree.num_nodes)[node])
                (packed,) = pack_examples([example], TrainConfig(), eos_token_id=EOS)
                own = tree.token_ids[node].tolist()
                assert packed.targets.tolist() == (own if end == STOPPED else [*own, 1])


def test_an_answer_that_ends_with_its_prefix_teaches_its_prefix_alone() -> None:
    tree = make_tree([-1, 0, 1], [[], [10, 11], []], outcomes={2: Outcome.CORRECT})
    tree = tree_from_dict(tree_to_dict(tree) | {"end_token_ids": [-1, -1, STOPPED]})
    (packed,) = pack_examples([TrainingExample(tree, np.array([0.0, 1.0, 1.0]))], TrainConfig(), eos_token_id=EOS)
    assert packed.targets.tolist() == [10, 11]


def test_trees_keep_it_on_disk_and_go_on_with_it(trees: list[SearchTree], tmp_path: Path) -> None:
    with TreeWriter(tmp_path / "trees.jsonl") as writer:
        for tree in trees:
            writer.append(tree)
    expected = [tree_to_dict(tree) for tree in trees]
    assert [tree_to_dict(tree) for tree in read_trees(tmp_path / "trees.jsonl")] == expected
    again = {tree.problem_id: TreeBuilder.from_tree(tree, SearchConfig()).build() for tree in trees}
    assert as_dicts(again) == expected


def test_a_search_asks_with_the_steps_so_far_as_the_answers_prefix() -> None:
    class Asked(ScriptedPolicy):
        def submit(self, requests: Sequence[SampleRequest]) -> None:
            lengths.extend((r.num_prefix_tokens, len(r.token_ids)) for r in requests)
            super().submit(requests)

    lengths = list[tuple[int, int]]()
    policy = Asked(running_on, CharCodec(StopRule(("\nQ:",))))
    search_trees(make_problems(1), policy, LateGrader(), SearchConfig(), seed=0, on_tree=lambda tree: None)
    prompt = len(CharCodec().encode_prompt("q0"))
    assert {length - prefix for prefix, length in lengths} == {prompt}
    assert len({prefix for prefix, _ in lengths}) > 1


def test_an_evaluation_grades_what_comes_before_the_stop() -> None:
    policy = ScriptedPolicy(lambda *_: "#1\nQ: more\n#2" + "x" * 90, CharCodec(StopRule(("\nQ:",))))
    problems = [Problem("letters/test/0", "q", "1", "letters")]
    config = EvaluationConfig(max_new_tokens=40, num_samples=2, sampled_problems=1)
    report, predictions = evaluate(
        problems, policy, LateGrader(), split="test", config=config, seed=0, extract=extract_answer
    )
    assert (report.accuracy, report.num_truncated, predictions[0].text) == (1.0, 0, "#1")
    assert report.sampled["avg@2"] == 1.0


# --- settings ------------------------------------------------------------------------------------------------------


def test_one_text_or_several_and_none_that_is_empty() -> None:
    assert apply_overrides(PipelineConfig(), ["policy.stop=Question:"]).policy.stop == ("Question:",)
    given = json.dumps(["\n\n", "User:"])
    assert apply_overrides(PipelineConfig(), [f"policy.stop={given}"]).policy.stop == ("\n\n", "User:")
    with pytest.raises(ConfigError, match="an empty text would end every answer"):
        apply_overrides(PipelineConfig(), ['policy.stop=["a", ""]'])


def test_what_ends_answers_is_in_the_engines_key() -> None:
    def key(*overrides: str) -> str:
        config = apply_overrides(PipelineConfig(), list(overrides))
        return json.dumps(engine_spec(config, base_policy(config), "tiny-word"))

    assert key("policy.stop=[]") == key("policy.stop_after_answer=false") == key()
    assert len({key(), key("policy.stop=a"), key('policy.stop=["a", "b"]'), key("policy.stop_after_answer=true")}) == 4


def test_the_answers_mark_is_the_instructions_or_else_the_datasets() -> None:
    assert [answer_mark(name, "") for name in ("gsm8k", "tiny-word@2", "math", "tiny-algebra", "file")] == [
        *("hashes", "hashes", "box", "box", "box")
    ]
    assert answer_mark("file", "End with `#### ` and the answer.") == "hashes"
    assert answer_mark("gsm8k", r"Put it into \boxed{}.") == "box"


@pytest.mark.parametrize("backend", ["transformers", "scripted"])
def test_a_run_gives_its_engines_the_rule(backend: str) -> None:
    overrides = [f"policy.backend={backend}", "policy.device=cpu", "policy.stop_after_answer=true", "policy.stop=User"]
    config = apply_overrides(PipelineConfig(), overrides)
    for name, mark in (("tiny-word", "hashes"), ("tiny-algebra", "box")):
        policy = open_policy(config, base_policy(config), [make_problem(name, "test", 0)])
        assert policy.codec.stop == StopRule(("User",), mark)  # type: ignore[attr-defined, arg-type]
    engines.close()


@pytest.mark.slow
@pytest.mark.vllm
@NEEDS_VLLM[-1]
def test_vllm_stops_where_the_transformers_engine_does() -> None:
    from pipeline_lib.policy.vllm_engine.vllm_policy import VllmPolicy

    free = transformers_policy()
    requests = tiny_requests(free, 60)
    config = PolicyConfig(model="tiny", device="cpu", stop=("=",), stop_after_answer=True)
    policy = VllmPolicy(TINY_BASE, policy_id="test", config=config, codec=load_codec(TINY_BASE, config))
    try:
        for rule in (StopRule(("=",)), StopRule((" 1", "\n###")), HASHES, StopRule()):
            policy.codec.stop = rule  # type: ignore[attr-defined]
            before = policy.stats.tokens_generated, free.stats.tokens_generated
            expected = cut_afterwards(free, requests, rule)
            assert as_sampled(policy, requests) == expected
            drawn, whole = policy.stats.tokens_generated - before[0], free.stats.tokens_generated - before[1]
            is_shorter = any(num_chars is not None for _, _, num_chars, _ in expected.values())
            assert drawn < whole if is_shorter else drawn == whole
            assert is_shorter == bool(rule.strings)  # the base ends its answers itself, on the line with the mark
            assert policy.num_in_flight == 0
    finally:
        policy.close()
