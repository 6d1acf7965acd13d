"""Attention by blocks is attention over whole rows, at the price of what tokens see."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training_grafting import SHOTS, packed_trees
from torch.nn.functional import scaled_dot_product_attention
from training_fixtures import CPU, EOS, random_tree, save_model

from pipeline_lib.config import TrainConfig
from pipeline_lib.training.architectures import tree_attention
from pipeline_lib.training.architectures.attention_masks import tree_masks
from pipeline_lib.training.architectures.tree_attention import BLOCKED, cut_into_blocks
from pipeline_lib.training.batches.batching import PackedBatch, pack_rows
from pipeline_lib.training.batches.examples import build_examples
from pipeline_lib.training.batches.grafting import share_beginnings
from pipeline_lib.training.batches.packing import pack_example
from pipeline_lib.training.gradients import add_gradients
from pipeline_lib.training.open_policy import attend_by_blocks, load_policy

HERE = torch.device("cpu")
LAYOUT = SimpleNamespace(sliding_window=None, layer_types=None)


def rows_of(seed: int, *, break_even_tokens: int = 1) -> PackedBatch:
    """Two trees behind one beginning, and three others."""
    return pack_rows(
        share_beginnings(packed_trees(seed, [SHOTS, SHOTS, (), (), ()])), break_even_tokens=break_even_tokens
    )


@given(st.integers(0, 10_000), st.sampled_from([(4, 8), (8,), (16, 64)]), st.sampled_from([1, 10_000]))
@settings(max_examples=25)
def test_every_token_sees_by_blocks_what_it_sees_in_whole_rows(seed, sizes, break_even_tokens):
    batch = rows_of(seed, break_even_tokens=break_even_tokens)
    layout = SimpleNamespace(sliding_window=5, layer_types=["full_attention", "sliding_attention"])
    blocks = cut_into_blocks(batch.subtree_ends, HERE, sizes)
    assert blocks is not None
    whole = tree_masks(batch, layout, HERE, torch.float32)
    by_blocks = tree_masks(batch, layout, HERE, torch.float32, blocks)
    num_rows, length = batch.token_ids.shape
    places = blocks.places.tolist()
    for kind in layout.layer_types:
        for token in range(num_rows * length):
            row, column = divmod(token, length)
            expected = row * length + torch.nonzero(whole[kind][row, 0, column] == 0)[:, 0]
            block, query = divmod(places[token], blocks.queries.shape[1])
            assert blocks.queries[block, query] == token
            seen = blocks.keys[block][by_blocks[kind][block, 0, query] == 0]
            assert seen.tolist() == expected.tolist()


def test_short_trees_behind_a_long_beginning_take_a_third_of_the_pairs():
    ends = np.full(1336, 1336)
    for start in range(300, 1336, 64):
        ends[start : start + 64] = min(start + 64, 1336)
    blocks = cut_into_blocks(ends[None], HERE)
    assert blocks is not None
    assert blocks.queries.numel() * blocks.keys.shape[1] < 1336**2 / 2.5
    assert cut_into_blocks(np.full((1, 1336), 1336), HERE) is None  # one path sees all that is before


@pytest.mark.parametrize("max_products", [1 << 26, 0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_results_and_gradients_are_those_of_attention_over_whole_rows(dtype, tolerance, max_products, monkeypatch):
    monkeypatch.setattr(tree_attention, "MAX_PRODUCTS", max_products)
    batch = rows_of(3, break_even_tokens=10_000)
    blocks = cut_into_blocks(batch.subtree_ends, HERE)
    assert blocks is not None
    assert len(blocks.queries) > len(batch.token_ids)
    num_rows, length = batch.token_ids.shape
    generator = torch.Generator().manual_seed(0)

    def states(num_heads: int) -> torch.Tensor:
        drawn = torch.randn(num_rows, num_heads, length, 8, generator=generator)
        return drawn.to(dtype).requires_grad_()

    query, key, value = states(6), states(2), states(2)
    found, _ = tree_attention.tree_attention(
        torch.nn.Identity(), query, key, value, tree_masks(batch, LAYOUT, HERE, dtype, blocks), tree_blocks=blocks
    )
    whole = scaled_dot_product_attention(
        query.float(),
        *(each.float().repeat_interleave(3, dim=1) for each in (key, value)),
        attn_mask=tree_masks(batch, LAYOUT, HERE, torch.float32),
    ).transpose(1, 2)
    assert torch.allclose(found.float(), whole, atol=tolerance)
    weights = torch.randn(found.shape, generator=generator)
    gradients = torch.autograd.grad((found.float() * weights).sum(), (query, key, value))
    expected = torch.autograd.grad((whole * weights).sum(), (query, key, value))
    for one, other in zip(gradients, expected, strict=True):
        assert float((one - other).float().norm() / other.float().norm()) < tolerance


def test_a_policy_learns_the_same_by_blocks_and_over_whole_rows(tmp_path):
    config = TrainConfig(objective="rft", lora_rank=4)
    trees = [random_tree(seed) for seed in range(40)]
    examples = build_examples(trees, [np.ones(tree.num_nodes) for tree in trees], config)
    batch = pack_rows([pack_example(each, eos_token_id=EOS) for each in examples], break_even_tokens=1 << 30)
    trained = load_policy(save_model(tmp_path), None, config, CPU, seed=0)
    assert trained.attends_by_blocks
    gradients = []
    for by_blocks in (True, False):
        attend_by_blocks(trained, by_blocks)
        assert trained.attends_by_blocks == by_blocks
        assert (trained.visible(batch).blocks is not None) == by_blocks
        metrics = add_gradients(trained, [batch], config)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trained.trainable().values()]))
        for parameter in trained.trainable().values():
            parameter.grad = None
        assert metrics["loss"] > 0
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-4


def test_layers_that_are_not_told_of_blocks_attend_to_whole_rows(tmp_path, monkeypatch):
    """A model whose layers hand nothing on to their attention is trained all the same."""
    original = tree_attention.AttentionInterface()[BLOCKED]
    monkeypatch.setitem(
        tree_attention.AttentionInterface._global_mapping,
        BLOCKED,
        lambda *args, tree_blocks=None, **others: original(*args, **others),
    )
    assert not load_policy(save_model(tmp_path), None, TrainConfig(), CPU, seed=0).attends_by_blocks


def test_rows_with_padding_are_answered_as_by_plain_attention(tmp_path):
    """Whoever calls the model itself, as TRL does, hands it no blocks but a mask of padding."""
    trained = load_policy(save_model(tmp_path), None, TrainConfig(), CPU, seed=0)
    ids, mask = torch.arange(2, 26).view(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    logits = []
    for by_blocks in (True, False):
        attend_by_blocks(trained, by_blocks)
        with torch.no_grad():
            logits.append(trained.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()])
    assert torch.equal(*logits)
    with torch.no_grad():
        unmasked = trained.model(input_ids=ids, use_cache=False).logits[mask.bool()]
    assert not torch.allclose(unmasked, logits[0], atol=1e-3)
