from __future__ import annotations

from pipeline_lib.seeding import derive_generator, derive_seed


def test_parts_are_kept_apart():
    seeds = {derive_seed("ab", "c"), derive_seed("a", "bc"), derive_seed("abc"), derive_seed(1), derive_seed("1")}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_never_change():
    assert derive_seed(0, 1, "tiny-word/train/00017") == SEED_OF_TREE_17
    assert derive_generator(0, "x").integers(0, 10**9, 2).tolist() == FIRST_DRAWS


SEED_OF_TREE_17 = 4949067498644502065
FIRST_DRAWS = [927088808, 709660822]
