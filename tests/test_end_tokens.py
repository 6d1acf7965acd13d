"""The token that ended an answer is the one that is taught: from the engine through tree and file into the loss."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from endpoint_fixtures import END, ScriptedEndpoint, server_config, server_policy
from policy_fixtures import make_requests, write_model
from search_fixtures import LateGrader, as_dicts, make_problems
from training_fixtures import EOS, make_tree
from transformers import AutoModelForCausalLM

from pipeline_lib.config import PolicyConfig, ScoreConfig, SearchConfig, TrainConfig
from pipeline_lib.policy import FinishReason, SampleRequest, SamplingParams, sample_all
from pipeline_lib.policy.end_tokens import declared_end_ids
from pipeline_lib.policy.scripted import CharCodec, ScriptedPolicy
from pipeline_lib.policy.tokenizers import load_codec
from pipeline_lib.policy.transformers_engine.transformers_policy import TransformersPolicy
from pipeline_lib.score import score_tree
from pipeline_lib.search import TreeBuilder, TreeWriter, read_trees, read_trees_parquet, search_trees
from pipeline_lib.search.tree_files import PARQUET_SCHEMA, tree_from_dict, tree_to_dict, write_trees_parquet
from pipeline_lib.store import write_parquet
from pipeline_lib.training.batches.batching import pack_rows
from pipeline_lib.training.batches.examples import build_examples
from pipeline_lib.training.gradients import log_probs_of
from pipeline_lib.training.loop import pack_examples, train
from pipeline_lib.training.open_policy import load_policy
from pipeline_lib.types import Outcome, SearchTree, TrainingExample

ENDS = [1, 7, 12]  # the tokenizer's own is 1


class WatchedPolicy(TransformersPolicy):
    """Notes which token each request drew last, beside what it hands over."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.drawn: dict[bytes, list[int]] = defaultdict(list)  # by prompt, prefix and new tokens

    def _append(self, ready: Any, tokens: Any) -> None:
        table = self._table
        for slot, token in zip(ready, tokens, strict=True):
            if token in ENDS:
                self.drawn[table.tokens[slot, : table.lengths[slot]].tobytes()].append(int(token))
        super()._append(ready, tokens)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that ends its answers with any of three tokens, one of which its tokenizer knows of."""
    folder = write_model(tmp_path_factory.mktemp("model"), seed=3)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS}))
    return folder


def open_policy(folder: Path) -> WatchedPolicy:
    config = PolicyConfig(model=str(folder), max_batch=48, device="cpu")
    return WatchedPolicy(folder, policy_id="two ends", config=config, codec=load_codec(folder, config))


@pytest.fixture(scope="module")
def searched(model_dir: Path) -> tuple[list[SearchTree], WatchedPolicy]:
    policy, trees = open_policy(model_dir), list[SearchTree]()
    config = SearchConfig(num_simulations=16, max_new_tokens=60, temperature=1.5)
    search_trees(make_problems(12), policy, LateGrader(), config, seed=0, on_tree=trees.append)
    return trees, policy


def finished(tree: SearchTree) -> list[int]:
    return [n for n in range(1, tree.num_nodes) if tree.outcomes[n] not in (Outcome.OPEN, Outcome.TRUNCATED)]


def context(tree: SearchTree, node: int) -> list[int]:
    """Prompt and all tokens down to the end of `node`."""
    return np.concatenate([tree.prompt_token_ids, *(tree.token_ids[n] for n in tree.path(node))]).tolist()


def test_the_id_that_is_scored_is_the_one_that_was_sampled(
    searched: tuple[list[SearchTree], WatchedPolicy], model_dir: Path
) -> None:
    trees, policy = searched
    config = TrainConfig(objective="rft", lora_rank=2)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    trained = load_policy(model_dir, None, config, PolicyConfig(model=str(model_dir), device="cpu"), seed=0)
    scored: list[int] = []
    for tree in trees:
        for node in finished(tree):
            weights = np.zeros(tree.num_nodes)
            weights[node] = 1.0
            packed = pack_examples([TrainingExample(tree, weights)], config, eos_token_id=EOS)
            batch = pack_rows(packed, break_even_tokens=700)
            ids = context(tree, node)
            drawn = policy.drawn[np.array(ids, dtype=np.int32).tobytes()]
            assert batch.targets[-1] == drawn[0]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            expected = float(logits.log_softmax(-1)[drawn[0]])
            assert float(log_probs_of(trained, [batch])[0][-1]) == pytest.approx(expected, abs=1e-4)
            scored.append(int(batch.targets[-1]))
    assert set(scored) == set(ENDS)
    assert len(scored) > 50


@pytest.mark.parametrize("objective", ["relative-correctness", "rft", "step-dpo"])
def test_every_objective_scores_it(objective: str) -> None:
    """Root → right, ended by 7; root → wrong, ended by 12: the examples of each objective hold both, or the right."""
    tree = make_tree(
        [-1, 0, 0],
        [[], [10], [20]],
        outcomes={1: Outcome.CORRECT, 2: Outcome.WRONG},
        visits=[2, 1, 1],
        value_sums=[1.0, 1.0, 0.0],
    )
    tree = tree_from_dict(tree_to_dict(tree) | {"end_token_ids": [-1, 7, 12]})
    config = TrainConfig.model_validate({"objective": objective})
    examples = build_examples([tree], [score_tree(tree, ScoreConfig())], config)
    (packed,) = pack_examples(examples, config, eos_token_id=EOS)
    assert packed.targets.tolist() == ([10, 7] if objective == "rft" else [10, 7, 20, 12])


def test_a_training_takes_the_trees_word(
    searched: tuple[list[SearchTree], WatchedPolicy], model_dir: Path, tmp_path: Path
) -> None:
    """Told the tokenizer's own id or another one, training is the same: no tree here needs to be told."""
    trees = [tree for tree in searched[0] if finished(tree)][:4]
    examples = [TrainingExample(tree, (tree.outcomes > 0).astype(float)) for tree in trees]
    losses = []
    for number, own in enumerate((None, 30)):
        result = train(
            examples,
            model_dir=model_dir,
            previous_adapter=None,
            output_dir=tmp_path / f"out-{number}",
            checkpoint_dir=tmp_path / f"checkpoint-{number}",
            config=TrainConfig(objective="rft", lora_rank=2, num_epochs=1),
            policy=PolicyConfig(model=str(model_dir), device="cpu"),
            seed=0,
            eos_token_id=own,
        )
        losses.append([update["loss"] for update in result.history])
    assert losses[0] == losses[1]


def test_engines_hand_over_what_ended_the_answer(model_dir: Path) -> None:
    policy = open_policy(model_dir)
    requests = make_requests(60, temperature=1.5)
    results = sample_all(policy, requests)
    for request in requests:
        result = results[request.request_id]
        ids = np.concatenate([request.token_ids, result.token_ids]).astype(np.int32)
        is_ended = result.finish_reason is FinishReason.STOP
        assert (result.end_token_id in policy.drawn[ids.tobytes()]) == is_ended
        assert (result.end_token_id is None) == (not is_ended)
    assert {result.end_token_id for result in results.values()} == {None, *ENDS}


def test_a_script_may_end_its_answers_with_several() -> None:
    codec = CharCodec()
    policy = ScriptedPolicy(lambda prompt, prefix, seed: "#1", codec, end_token_ids=[5, 9])
    asked = [SampleRequest(str(i), codec.encode_prompt("q"), SamplingParams(9), i) for i in range(4)]
    assert [sample_all(policy, [r])[r.request_id].end_token_id for r in asked] == [5, 9, 5, 9]
    short = SampleRequest("short", codec.encode_prompt("q"), SamplingParams(2), 0)
    assert sample_all(policy, [short])["short"].end_token_id is None


@pytest.mark.parametrize(
    ("choice", "tokens", "end"),
    [
        ({"token_ids": [5, 6, 0], "finish_reason": "stop", "stop_reason": None}, [5, 6], "own"),
        ({"token_ids": [5, 6], "finish_reason": "stop", "stop_reason": 9}, [5, 6], 9),
        ({"token_ids": [5, 6], "finish_reason": "stop", "stop_reason": "</s>"}, [5, 6], None),
        ({"token_ids": [5, 6], "finish_reason": "stop"}, [5, 6], None),
        ({"token_ids": [5, 6], "finish_reason": "length"}, [5, 6], None),
    ],
)
def test_a_server_tells_by_the_last_token_or_by_its_stop_reason(
    choice: dict[str, Any], tokens: list[int], end: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline_lib.policy.server_engine.server_policy.declared_end_ids", lambda folder, revision: [9]
    )
    reply = {**choice, "token_ids": [END if token == 0 else token for token in choice["token_ids"]]}
    endpoint = ScriptedEndpoint(intercept=lambda path, body: (200, {"choices": [reply]}) if "seed" in body else None)
    try:
        with server_policy(server_config(endpoint.url)) as policy:
            asked = SampleRequest("a", np.array([5, 6], dtype=np.int32), SamplingParams(20), 1)
            result = sample_all(policy, [asked])["a"]
    finally:
        endpoint.stop()
    assert result.token_ids.tolist() == tokens
    assert result.end_token_id == (END if end == "own" else end)


def test_without_a_generation_config_the_models_own_declares(model_dir: Path, tmp_path: Path) -> None:
    assert declared_end_ids(model_dir) == ENDS
    assert declared_end_ids(write_model(tmp_path, eos_token_id=5)) == 5
    (tmp_path / "generation_config.json").unlink()
    assert declared_end_ids(tmp_path) == 5


def test_trees_keep_it_on_disk_and_go_on_with_it(
    searched: tuple[list[SearchTree], WatchedPolicy], tmp_path: Path
) -> None:
    trees = sorted(searched[0], key=lambda tree: tree.problem_id)
    assert {tree.end_token_id(node) for tree in trees for node in finished(tree)} == set(ENDS)
    with TreeWriter(tmp_path / "trees.jsonl") as writer:
        for tree in trees:
            writer.append(tree)
    write_trees_parquet(trees, tmp_path / "trees.parquet")
    expected = [tree_to_dict(tree) for tree in trees]
    for read in (read_trees(tmp_path / "trees.jsonl"), read_trees_parquet(tmp_path / "trees.parquet")):
        assert [tree_to_dict(tree) for tree in read] == expected
    again = {tree.problem_id: TreeBuilder.from_tree(tree, SearchConfig()).build() for tree in trees}
    assert as_dicts(again) == expected


def test_trees_of_0_1_0_are_read_and_teach_the_tokenizers_own(tmp_path: Path) -> None:
    tree = make_tree([-1, 0], [[], [10, 11]], outcomes={1: Outcome.CORRECT})
    row = tree_to_dict(tree)
    del row["end_token_ids"]
    (tmp_path / "trees.jsonl").write_text(json.dumps(row) + "\n")
    old = pa.schema([column for column in PARQUET_SCHEMA if column.name != "end_token_ids"])
    write_parquet(pa.Table.from_pylist([row], schema=old), tmp_path / "trees.parquet")
    for read in (read_trees(tmp_path / "trees.jsonl"), read_trees_parquet(tmp_path / "trees.parquet")):
        (packed,) = pack_examples([TrainingExample(read[0], np.array([0.0, 1.0]))], TrainConfig(), eos_token_id=EOS)
        assert packed.targets.tolist() == [10, 11, EOS]
        assert TreeBuilder.from_tree(read[0], SearchConfig()).build().end_token_ids.tolist() == [-1, -1]
