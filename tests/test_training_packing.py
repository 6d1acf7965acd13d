import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_fixtures import EOS, group_scores, make_tree, random_tree

from pipeline_lib.config import TrainConfig
from pipeline_lib.training.batches.batching import first_fit_decreasing, pack_rows, plan_updates, split_evenly
from pipeline_lib.training.batches.cutting import cut_tree
from pipeline_lib.training.batches.examples import build_examples
from pipeline_lib.training.batches.packing import depth_first, pack_example
from pipeline_lib.types import Outcome, TrainingExample

# root (2, 3) -> 1 (10, 11) -> 3 (12) right; root -> 2 (20, 21) wrong
TREE = make_tree(
    [-1, 0, 0, 1],
    [[], [10, 11], [20, 21], [12]],
    outcomes={3: Outcome.CORRECT, 2: Outcome.WRONG},
)


def pack(weights, tree=TREE, max_tokens=1000, **pairs):
    example = TrainingExample(tree, np.array(weights, dtype=np.float64), **pairs)
    return cut_tree(pack_example(example, eos_token_id=EOS), max_tokens)


def packed_examples(count, config=None):
    trees = [random_tree(seed) for seed in range(count)]
    examples = build_examples(trees, [group_scores(tree) for tree in trees], config or TrainConfig())
    return [pack_example(example, eos_token_id=EOS) for example in examples]


def test_a_tree_by_hand():
    (packed,) = pack([0, 1, -2, 3])
    assert packed.token_ids.tolist() == [2, 3, 10, 11, 12, 20, 21]
    assert packed.positions.tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert packed.subtree_ends.tolist() == [7, 7, 5, 5, 5, 7, 7]
    # node 1: 10 after 3, 11 after 10; node 3: 12 after 11, then the end; node 2: 20 after 3, 21, then the end
    assert packed.targets.tolist() == [10, 11, 12, EOS, 20, 21, EOS]
    assert packed.sources.tolist() == [1, 2, 3, 4, 1, 5, 6]
    assert packed.weights.tolist() == [1, 1, 3, 3, -2, -2, -2]
    assert packed.num_unique_tokens == 7


def test_only_scored_nodes_and_their_ancestors_are_packed():
    (packed,) = pack([0, 0, 0, 1])
    assert packed.token_ids.tolist() == [2, 3, 10, 11, 12]
    assert packed.targets.tolist() == [12, EOS]


def test_with_the_kl_on_paths_the_steps_before_a_scored_one_are_there_without_a_weight():
    example = TrainingExample(TREE, np.array([0.0, 0, 0, 3]))
    packed = pack_example(example, eos_token_id=EOS, kl_on_path=True)
    assert packed.targets.tolist() == [10, 11, 12, EOS]
    assert packed.weights.tolist() == [0, 0, 3, 3]
    plain = pack_example(example, eos_token_id=EOS)
    assert (packed.token_ids.tolist(), plain.weights.tolist()) == (plain.token_ids.tolist(), [3, 3])


def test_a_truncated_path_does_not_teach_to_stop():
    tree = make_tree([-1, 0], [[], [10, 11]], outcomes={1: Outcome.TRUNCATED})
    assert pack([0, 1], tree)[0].targets.tolist() == [10, 11]


def test_a_rollout_that_ends_at_once_scores_its_end_after_the_parent():
    tree = make_tree([-1, 0, 1], [[], [10], []], outcomes={2: Outcome.UNPARSED})
    (packed,) = pack([0, 0, 1], tree)
    assert (packed.sources.tolist(), packed.targets.tolist()) == ([2], [EOS])


def test_the_end_of_an_answer_is_no_context_for_its_children():
    tree = make_tree([-1, 0, 1], [[], [10], [11]], outcomes={1: Outcome.WRONG, 2: Outcome.CORRECT})
    (packed,) = pack([0, 1, 1], tree)
    assert packed.token_ids.tolist() == [2, 3, 10, 11]
    assert packed.targets.tolist() == [10, EOS, 11, EOS]
    assert packed.sources.tolist() == [1, 2, 2, 3]


def test_pairs_number_their_segments():
    (packed,) = pack(np.zeros(4), pairs=np.array([[1, 2]], dtype=np.int32))
    assert packed.targets.tolist() == [10, 11, 20, 21, EOS]
    assert packed.segments.tolist() == [0, 0, 1, 1, 1]
    assert packed.num_pairs == 1


def test_a_large_tree_is_cut_and_every_scored_token_kept_once():
    parts = pack([0, 1, -2, 3], max_tokens=5)
    assert [part.token_ids.tolist() for part in parts] == [[2, 3, 10, 11, 12], [2, 3, 20, 21]]
    assert sum(part.num_unique_tokens for part in parts) == 7
    assert [t for part in parts for t in part.targets.tolist()] == pack([0, 1, -2, 3])[0].targets.tolist()


@given(st.integers(0, 10_000), st.integers(1, 300), st.sampled_from(["relative-correctness", "step-dpo"]))
@settings(max_examples=40)
def test_cut_as_small_as_one_likes_every_scored_token_sees_what_it_saw(seed, max_tokens, objective):
    tree = random_tree(seed)
    config = TrainConfig(objective=objective, negative_clip=None)
    for example in build_examples([tree], [group_scores(tree)], config):
        whole = pack_example(example, eos_token_id=EOS)
        parts = cut_tree(whole, max_tokens)
        assert [context for part in parts for context in contexts(part)] == contexts(whole)
        assert sum(part.num_pairs for part in parts) == whole.num_pairs
        assert sum(part.num_unique_tokens for part in parts) <= whole.num_unique_tokens
        for part in parts:
            assert part.num_tokens <= max_tokens or len(set(part.segments.tolist())) <= (2 if part.num_pairs else 1)
            pairs = part.segments // 2
            assert not part.num_pairs or (pairs.min() >= 0 and pairs.max() < part.num_pairs)


def contexts(packed):
    """(target, weight, path up to it) of every scored token, in order."""
    return [
        (
            int(target),
            float(weight),
            packed.token_ids[: source + 1][packed.subtree_ends[: source + 1] > source].tolist(),
        )
        for target, weight, source in zip(packed.targets, packed.weights, packed.sources, strict=True)
    ]


def test_parts_of_a_part_count_what_is_new_once():
    (whole,) = pack([0, 1, -2, 3])
    first, second = cut_tree(whole, 5)
    assert sum(part.num_unique_tokens for part in cut_tree(second, 3)) == second.num_unique_tokens == 2
    assert sum(part.num_unique_tokens for part in cut_tree(first, 3)) == first.num_unique_tokens == 5


def test_a_tree_without_a_prompt_is_refused():
    with pytest.raises(ValueError, match="no prompt tokens"):
        pack([0, 1], make_tree([-1, 0], [[], [4]], prompt=()))


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_each_token_sees_exactly_its_path(seed):
    tree = random_tree(seed)
    weights = np.ones(tree.num_nodes) * (np.arange(tree.num_nodes) > 0)
    (packed,) = pack(weights, tree)
    start = len(tree.prompt_token_ids)
    for node in depth_first(tree)[1:]:
        path = [t for step in tree.path(int(node)) for t in tree.token_ids[step].tolist()]
        last = start + len(tree.token_ids[node]) - 1
        seen = [j for j in range(last + 1) if last < packed.subtree_ends[j]]
        assert packed.token_ids[seen].tolist() == tree.prompt_token_ids.tolist() + path
        assert packed.positions[seen].tolist() == list(range(len(seen)))
        start = last + 1


def test_first_fit_decreasing_by_hand():
    assert first_fit_decreasing([3, 6, 5, 4], 9) == [[1, 0], [2, 3]]


def test_groups_are_even_and_bounded():
    trees = packed_examples(20)
    groups = split_evenly(trees, 600)
    sizes = [sum(tree.num_tokens for tree in group) for group in groups]
    assert [tree for group in groups for tree in group] == trees
    assert max(sizes) <= 600
    assert split_evenly(trees, 1) == [[tree] for tree in trees]
    assert split_evenly([], 600) == []


def test_trees_of_a_row_do_not_see_each_other():
    trees = packed_examples(4)
    batch = pack_rows(trees, break_even_tokens=768)
    flat = batch.token_ids.reshape(-1)
    width = batch.token_ids.shape[1]
    ends = (batch.subtree_ends + width * np.arange(len(batch.subtree_ends))[:, None]).reshape(-1)
    expected = sorted((tree.token_ids[tree.sources].tolist(), tree.targets.tolist()) for tree in trees)
    starts = np.flatnonzero(batch.positions.reshape(-1) == 0)
    assert (ends[batch.sources] > batch.sources).all()
    assert sorted(flat[batch.sources].tolist()) == sorted(t for sources, _ in expected for t in sources)
    assert sum(ends[start] - start > 1 for start in starts) == len(
        trees
    )  # one prompt start per tree; padding sees itself


def test_padding_stays_below_15_percent_and_nothing_is_lost():
    trees = packed_examples(40)
    order = np.random.default_rng(0).permutation(len(trees))
    for tokens_per_microbatch in (1024, 4096):
        updates = plan_updates(
            trees, order, tokens_per_update=4096, tokens_per_microbatch=tokens_per_microbatch, break_even_tokens=768
        )
        batches = [batch for update in updates for batch in update]
        unique = sum(batch.num_unique_tokens for batch in batches)
        assert unique == sum(tree.num_unique_tokens for tree in trees)
        assert sum(batch.num_scored_tokens for batch in batches) == sum(tree.num_scored_tokens for tree in trees)
        assert sum(batch.num_tokens for batch in batches) / unique <= 1.15
