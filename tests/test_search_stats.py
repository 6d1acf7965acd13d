from search_fixtures import search

from pipeline_lib.search import SearchStats, total_stats


def test_rates_of_nothing_are_numbers():
    metrics = SearchStats().metrics()
    assert metrics["tokens_per_s"] == metrics["engine_idle_share"] == 0.0
    assert set(map(type, metrics.values())) == {float}
    assert search(lambda prefix, seed: "", [])[1].num_problems == 0


def test_shards_add_up():
    shards = [
        SearchStats(num_problems=2, tokens_generated=100, seconds=1.0, slot_steps=50, capacity_steps=100),
        SearchStats(num_problems=1, tokens_generated=200, seconds=2.0, slot_steps=100, capacity_steps=100),
    ]
    total = total_stats(shards)
    assert (total.tokens_per_s, total.engine_idle_share, total.problems_per_hour) == (100.0, 0.25, 3600.0)
