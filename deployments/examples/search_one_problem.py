"""One problem, searched by one simulation after the other; the scheduler does the same for thousands at a time.

``python -m deployments.examples.search_one_problem`` prints the tree: a step's right and all rollouts, text and end.
"""

from functools import partial

import rich
from rich.text import Text
from rich.tree import Tree

from deployments.presets import preset
from pipeline_lib.config import SearchConfig
from pipeline_lib.grading import grade
from pipeline_lib.policy import Policy, draw_all
from pipeline_lib.problems.tiny import make_problem
from pipeline_lib.search import TreeBuilder, request_at, rollout_from_result, split_steps
from pipeline_lib.seeding import derive_seed
from pipeline_lib.types import ROOT, Outcome, PolicyRef, Problem, SearchTree
from tasks.runtime.engines import open_policy


def search_one(problem: Problem, policy: Policy, config: SearchConfig, *, seed: int) -> SearchTree:
    """The tree of one problem after ``config.num_simulations`` rollouts, whatever tokens they take."""
    split = partial(split_steps, codec=policy.codec, delimiter=config.step_delimiter, markdown=config.markdown_steps)
    prompt, own_seed = policy.codec.encode_prompt(problem.question), derive_seed(seed, problem.problem_id)
    tree = TreeBuilder(problem.problem_id, policy.policy_id, prompt, seed=own_seed, config=config)
    for index in range(config.num_simulations):
        node = tree.select()  # from the root down by UCB1
        request = request_at(tree, node, index, config)
        result = draw_all(policy, [request])[request.request_id]  # a whole continuation of the steps so far
        depth, room = tree.depth(node), request.params.max_new_tokens
        rollout = rollout_from_result(result, split, policy.codec, depth=depth, max_new_tokens=room, config=config)
        if rollout.outcome is Outcome.OPEN:  # it ended within all limits, so there may be an answer
            rollout = rollout.with_grade(grade(tree.prefix_text(node) + rollout.text, problem.answer))
        tree.insert_rollout(node, rollout)  # every step becomes a node; the reward goes up to the root
    return tree.build()


def picture(tree: SearchTree) -> Tree:
    """The tree for a terminal, children below their parents."""
    branches = {ROOT: Tree(tree.problem_id)}
    for node in range(1, tree.num_nodes):
        ended = Outcome(tree.outcomes[node]).name if tree.outcomes[node] != Outcome.OPEN else ""
        label = f"{tree.value_sums[node]:.0f} of {tree.visits[node]}  {tree.steps[node].strip()}  {ended}"
        branches[node] = branches[int(tree.parents[node])].add(Text(label))
    return branches[ROOT]


def main() -> None:
    """Searches a problem of the tiny world with the model that comes with Coppice."""
    config, problem = preset("tiny"), make_problem("tiny-word", "train", 4)
    policy = open_policy(config, PolicyRef(policy_id="tiny", base_model="tiny", iteration=0), [problem])
    rich.print(problem.question, picture(search_one(problem, policy, config.search, seed=0)))


if __name__ == "__main__":
    main()
