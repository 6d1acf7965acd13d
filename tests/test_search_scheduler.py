import numpy as np
import pytest
from search_fixtures import LateGrader, UnorderedPolicy, as_dicts, babble, make_problems, search

from pipeline_lib.config import SearchConfig
from pipeline_lib.search import search_trees, total_stats
from pipeline_lib.seeding import derive_generator, derive_seed
from pipeline_lib.types import ROOT, Outcome


def always(text):
    return lambda prefix, seed: text


def nodes(tree):
    return list(zip(tree.steps[1:], tree.outcomes.tolist()[1:], tree.visits.tolist()[1:], strict=True))


def search_one(script, **config):
    trees, stats, policy = search(script, make_problems(1), **config)
    return trees["letters/train/00000"], stats, policy


# --- What is asked ---


def test_other_prompts_take_turns_and_the_tree_keeps_the_policys_own():
    """Exploring behind other worked examples, and learning behind the policy's own."""
    seen = []

    def script(prefix, seed):
        question, _, answer = prefix.partition("?\n")
        seen.append((question, answer))
        return f"{seed % 2}\n2\n#### {seed % 3}"

    policy, trees = UnorderedPolicy(script), []
    search_trees(
        make_problems(1),
        policy,
        LateGrader(),
        SearchConfig(num_simulations=8, num_candidates=2, parallel_simulations=1),
        seed=0,
        on_tree=trees.append,
        prompts=lambda question: [policy.codec.encode_prompt(f"{mark}{question}") for mark in "ab"],
    )
    [tree] = trees
    [problem] = make_problems(1)
    assert [question for question, _ in seen] == [f"{mark}{problem.question}" for mark in "abababab"]
    assert {answer for _, answer in seen} > {""}  # what is in the tree is gone on with behind either
    assert policy.codec.decode(tree.prompt_token_ids) == f"{problem.question}?\n"


# --- What becomes of a rollout ---


def test_the_whole_path_is_graded():
    texts = iter(["a\nb", "c\nd", "#1"])
    policy, grader = UnorderedPolicy(lambda prefix, seed: next(texts)), LateGrader()
    config = SearchConfig(num_simulations=3, num_candidates=2, parallel_simulations=1)
    search_trees(make_problems(1), policy, grader, config, seed=0, on_tree=lambda tree: None)
    assert grader.predictions == ["a\nb", "c\nd", "a\n#1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n#1", [("a\n", Outcome.OPEN, 1), ("#1", Outcome.CORRECT, 1)]),
        ("a\n#2", [("a\n", Outcome.OPEN, 1), ("#2", Outcome.WRONG, 1)]),
        ("a\nb", [("a\n", Outcome.OPEN, 1), ("b", Outcome.UNPARSED, 1)]),
        ("#slow", [("#slow", Outcome.UNPARSED, 1)]),
        ("", [("", Outcome.UNPARSED, 1)]),
        ("a\nb!", [("a\n", Outcome.OPEN, 1), ("b", Outcome.UNPARSED, 1)]),  # a failure is asked again, and is no visit
        ("!", [("", Outcome.UNPARSED, 1)]),
    ],
)
def test_outcomes(text, expected):
    tree, stats, _ = search_one(always(text), num_simulations=1)
    assert nodes(tree) == expected
    assert (tree.num_rollouts, stats.num_rollouts) == (1, 1)
    assert tree.num_timeouts == stats.num_timeouts == ("slow" in text)
    assert stats.num_errors == stats.num_redrawn == ("!" in text)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({"max_depth": 2}, [("ab\n", Outcome.OPEN, 1), ("cdef\n", Outcome.TRUNCATED, 1)]),
        ({"max_depth": 3}, [("ab\n", Outcome.OPEN, 1), ("cdef\n", Outcome.OPEN, 1), ("#1", Outcome.CORRECT, 1)]),
        ({"max_step_tokens": 4}, [("ab\n", Outcome.OPEN, 1), ("cdef", Outcome.TRUNCATED, 1)]),
        ({"max_new_tokens": 5}, [("ab\n", Outcome.OPEN, 1), ("cd", Outcome.TRUNCATED, 1)]),
    ],
)
def test_a_rollout_is_cut_at_the_first_limit_it_passes(limit, expected):
    tree, _, _ = search_one(always("ab\ncdef\n#1"), num_simulations=1, **limit)
    assert nodes(tree) == expected


def test_tokens_past_a_limit_are_generated_but_not_kept():
    tree, stats, _ = search_one(always("ab\ncdef\n#1"), num_simulations=1, max_depth=1)
    assert (tree.tokens_generated, tree.tokens_kept) == (10, 3)
    assert (stats.tokens_generated, stats.tokens_kept, stats.tokens_kept_share) == (10, 3, 0.3)


def test_a_whole_path_obeys_the_token_limit():
    texts = iter(["a\nb\n#2", "c\nd\n#2", "#1"])
    _, _, policy = search_one(
        lambda prefix, seed: next(texts), num_simulations=3, num_candidates=2, parallel_simulations=1
    )
    first, _, third = policy.requests
    assert first.params.max_new_tokens - third.params.max_new_tokens == 2
    assert len(third.token_ids) - len(first.token_ids) == 2


# --- What the search finds ---


def test_the_best_path_of_a_scripted_policy_wins():
    def script(prefix, seed):
        rng = derive_generator(seed)
        so_far = prefix.partition("?\n")[2]
        steps = so_far
        while steps.count("\n") < 2:
            steps += str(rng.choice(["a\n", "b\n"]))
        is_right = rng.random() < (0.9 if steps.startswith("a\nb\n") else 0.1)
        work = "".join(rng.choice(list("abcdef"), size=4)) + "\n" if steps.count("\n") < 3 else ""
        return (steps + work + ("#1" if is_right else "#2"))[len(so_far) :]

    tree, _, _ = search_one(script, num_simulations=100, num_candidates=8, c_uct=0.5)
    groups = tree.sibling_groups()
    first = max(groups[ROOT], key=lambda child: tree.visits[child])
    second = max(groups[first], key=lambda child: tree.visits[child])
    assert (tree.steps[first], tree.steps[second]) == ("a\n", "b\n")
    assert tree.visits[second] > 50  # independent rollouts go there one time in four
    assert tree.values[second] > 0.8


# --- Nothing but seed, problem and config matters ---


def test_trees_do_not_depend_on_capacity_order_or_arrival():
    problems = make_problems(12)
    expected = as_dicts(search(babble, problems, capacity=1)[0])
    for capacity, arrival in ((7, 1), (64, 2), (64, 3)):
        order = np.random.default_rng(arrival).permutation(len(problems))
        trees, _, _ = search(babble, [problems[i] for i in order], capacity=capacity, arrival=arrival)
        assert as_dicts(trees) == expected


def test_a_killed_search_run_again_gives_the_same_trees():
    class KilledError(Exception):
        pass

    problems, finished = make_problems(12), {}

    def keep(tree):
        finished[tree.problem_id] = tree
        if len(finished) == 5:
            raise KilledError

    with pytest.raises(KilledError):
        search_trees(
            problems,
            UnorderedPolicy(babble),
            LateGrader(),
            SearchConfig(),
            seed=0,
            on_tree=keep,
            max_failed_share=1,
        )
    rest = [problem for problem in problems if problem.problem_id not in finished]
    trees, stats, _ = search(babble, rest, capacity=3, arrival=9)
    assert (len(rest), stats.num_problems) == (7, 7)
    assert as_dicts(finished | trees) == as_dicts(search(babble, problems)[0])


def test_a_continued_search_equals_an_uninterrupted_one():
    problems = make_problems(6)
    half, first, _ = search(babble, problems, num_simulations=8, parallel_simulations=1)
    whole, both, _ = search(babble, problems, num_simulations=16, parallel_simulations=1)
    continued, second, _ = search(babble, problems, num_simulations=16, parallel_simulations=1, resume=half, seed=99)
    assert as_dicts(continued) == as_dicts(whole)
    for name in ("num_rollouts", "tokens_generated", "tokens_kept", "num_timeouts", "num_errors"):
        assert getattr(total_stats([first, second]), name) == getattr(both, name)


def test_a_tree_that_needs_nothing_more_is_handed_over_as_it_is():
    problems = make_problems(2)
    done, _, _ = search(babble, problems)
    again, stats, policy = search(babble, problems, resume=done)
    assert as_dicts(again) == as_dicts(done)
    assert (stats.num_problems, stats.num_rollouts, policy.requests) == (2, 0, [])


def test_simulations_draw_from_named_seeds():
    _, _, policy = search_one(babble, seed=5, num_simulations=3)
    tree_seed = derive_seed(5, "letters/train/00000")
    assert {r.request_id: r.seed for r in policy.requests} == {
        f"letters/train/00000#{i}": derive_seed(tree_seed, i) for i in range(3)
    }


@pytest.mark.parametrize(
    "dial",
    [
        {"num_simulations": 15},
        {"num_candidates": 2},
        {"c_uct": 0.1},
        {"selection": "frontier"},
        {"selection": "entropy"},
        {"stop_after_equal": 2},
        {"parallel_simulations": 2},
        {"max_depth": 2},
        {"max_new_tokens": 7},
        {"max_step_tokens": 2},
        {"max_tokens_per_problem": 60},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"top_k": 3},
        {"min_p": 0.5},
    ],
)
def test_every_dial_changes_something(dial):
    problems = make_problems(4)
    plain, _, plain_policy = search(babble, problems)
    turned, _, policy = search(babble, problems, **dial)

    def asked(requests):
        return [(r.params.temperature, r.params.top_p, r.params.top_k, r.params.min_p) for r in requests]

    assert as_dicts(plain) != as_dicts(turned) or asked(plain_policy.requests) != asked(policy.requests)


# --- The engine and its bookkeeping ---


def test_the_engine_is_kept_full_and_few_trees_are_live():
    live, finished = set(), []

    def script(prefix, seed):
        live.add(prefix.partition("?")[0])
        return "a\n#1"

    problems = make_problems(64)
    policy = UnorderedPolicy(script, capacity=16)
    stats = search_trees(
        problems,
        policy,
        LateGrader(),
        SearchConfig(parallel_simulations=4),
        seed=0,
        on_tree=lambda tree: finished.append((tree.problem_id, len(live))),
    )
    assert policy.most_in_flight == 16 + 16 // 3 + 1
    assert stats.engine_idle_share < 0.1
    assert all(opened - position < 24 for position, (_, opened) in enumerate(finished))
    assert finished[0][1] < 24  # the first tree is done long before the last is opened
    assert stats.num_rollouts == 64 * 16


def test_a_token_budget_stops_new_simulations():
    tree, stats, _ = search_one(always("ab\n#2"), num_simulations=16, parallel_simulations=1, max_tokens_per_problem=12)
    assert (tree.num_rollouts, stats.num_problems) == (3, 1)
    assert tree.tokens_generated == 5 + 5 + 5  # still below 12 after two


def test_problems_and_trees_that_do_not_fit_are_refused():
    problems = make_problems(2)
    trees, _, _ = search(always("#1"), problems, num_simulations=1)
    with pytest.raises(ValueError, match="'letters/train/00001' stands twice"):
        search(always("#1"), [*problems, problems[1]])
    with pytest.raises(ValueError, match="its problem is not among those"):
        search(always("#1"), problems[:1], resume=trees)
    foreign = UnorderedPolicy(always("#1"))
    foreign.policy_id = "other"
    with pytest.raises(ValueError, match="was sampled by 'letters', not by 'other'"):
        search_trees(problems, foreign, LateGrader(), SearchConfig(), seed=0, on_tree=print, resume=trees)
