"""Trees with one beginning become one tree, and nothing that is learned changes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training_packing import contexts
from training_fixtures import EOS, group_scores, make_tree, random_tree

from pipeline_lib.config import TrainConfig
from pipeline_lib.training.batches.batching import PackedBatch, plan_updates
from pipeline_lib.training.batches.examples import build_examples
from pipeline_lib.training.batches.grafting import MIN_SHARED, share_beginnings
from pipeline_lib.training.batches.packing import pack_example
from pipeline_lib.types import TrainingExample
from tasks.train import _TokenProgress

SHOTS = tuple(range(5, 5 + MIN_SHARED))


def packed_trees(seed, beginnings, objective="relative-correctness"):
    """A packed tree for each beginning of a prompt, with two tokens of its own behind it."""
    trees = []
    for index, beginning in enumerate(beginnings):
        tree = random_tree(seed + index)
        trees.append(replace(tree, prompt_token_ids=np.array([*beginning, 2, 3 + index], dtype=np.int32)))
    config = TrainConfig(objective=objective, negative_clip=None)
    examples = build_examples(trees, [group_scores(tree) for tree in trees], config)
    return [pack_example(example, eos_token_id=EOS) for example in examples]


@given(st.integers(0, 10_000), st.sampled_from(["relative-correctness", "step-dpo"]))
@settings(max_examples=25)
def test_every_scored_token_sees_what_it_saw_at_the_same_positions(seed, objective):
    trees = packed_trees(seed, [SHOTS, (), SHOTS, SHOTS], objective)
    shared = share_beginnings(trees)
    key = str
    before = sorted((context for tree in trees for context in contexts(tree)), key=key)
    assert sorted((context for tree in shared for context in contexts(tree)), key=key) == before
    assert sum(tree.num_pairs for tree in shared) == sum(tree.num_pairs for tree in trees)
    for tree in shared:
        for index in range(tree.num_tokens):
            seen = [j for j in range(index + 1) if index < tree.subtree_ends[j]]
            assert tree.positions[seen].tolist() == list(range(len(seen)))
        pairs = tree.segments // 2
        assert not tree.num_pairs or sorted(set(pairs.tolist())) == list(range(tree.num_pairs))


def test_a_beginning_of_three_is_computed_once_and_other_trees_stay():
    alike = [make_tree([-1, 0], [[], [40 + i]], prompt=(*SHOTS, 30 + i)) for i in range(3)]
    other = make_tree([-1, 0], [[], [50]], prompt=(9, 9))
    examples = [TrainingExample(tree, np.array([0.0, 1.0])) for tree in (alike[0], other, *alike[1:])]
    trees = [pack_example(example, eos_token_id=EOS) for example in examples]
    grown, alone = share_beginnings(trees)
    assert alone is trees[1]
    assert grown.token_ids.tolist() == [*SHOTS, 30, 40, 31, 41, 32, 42]
    assert grown.num_unique_tokens == len(SHOTS) + 6
    assert grown.subtree_ends.tolist()[-6:] == [MIN_SHARED + n for n in (2, 2, 4, 4, 6, 6)]


def test_a_short_beginning_is_left_alone():
    trees = packed_trees(0, [SHOTS[:-3], SHOTS[:-3]])
    assert share_beginnings(trees) == trees


def test_an_update_computes_what_its_trees_share_once():
    trees = packed_trees(3, [SHOTS] * 4)
    budget = sum(tree.num_tokens for tree in trees)
    computed = budget - 3 * (MIN_SHARED + 1)  # and the token 2 behind it

    def plan(tokens_per_microbatch: int) -> list[PackedBatch]:
        limits = {"tokens_per_update": budget, "tokens_per_microbatch": tokens_per_microbatch}
        [batches] = plan_updates(trees, np.arange(4), **limits, break_even_tokens=700)
        return batches

    [batch] = plan(computed)
    assert batch.num_unique_tokens == computed
    assert batch.weights.sum() == pytest.approx(sum(tree.weights.sum() for tree in trees))
    assert len(plan(computed - 1)) == 2


@pytest.mark.parametrize("objective", ["relative-correctness", "step-dpo"])
def test_how_far_a_training_is_does_not_hang_on_what_is_shared(objective):
    trees = [replace(random_tree(seed), prompt_token_ids=np.array([*SHOTS, 2, 3 + seed])) for seed in range(24)]
    config = TrainConfig(objective=objective, negative_clip=None)
    examples = build_examples(trees, [group_scores(tree) for tree in trees], config)
    packed = [pack_example(example, eos_token_id=EOS) for example in examples]
    limits = {"tokens_per_update": 512, "tokens_per_microbatch": 512, "break_even_tokens": 10_000}
    updates = list(plan_updates(packed, np.arange(len(packed)), **limits))
    progress = _TokenProgress(1, examples, num_epochs=2)
    for number, batches in enumerate(updates):
        counted = {
            name: sum(getattr(batch, name) for batch in batches) for name in ("num_tokens", "num_weighted_tokens")
        }
        progress.on_update({**counted, "num_scored_tokens": counted["num_weighted_tokens"], "update": number})
    assert len(updates) > 1
    assert progress._progress.completed == pytest.approx(progress._progress.total / 2, rel=0.15)
