"""An objective of your own, tried on one batch of packed trees beside the shipped ones: loss and gradient norm.

``python -m deployments.examples.own_objective`` compares them on the model that comes with Coppice. To try one needs no
change of the library; to train with it does, since a run's objectives are a closed list: CONTRIBUTING.md says where.
"""

import rich
import torch
from transformers import AutoTokenizer

from deployments.examples.search_one_problem import search_one
from deployments.presets import preset
from pipeline_lib.config import PipelineConfig, apply_overrides
from pipeline_lib.policy.model_folders import model_folder
from pipeline_lib.problems.tiny import make_problem
from pipeline_lib.score import score_tree
from pipeline_lib.training.batches.batching import PackedBatch, pack_rows
from pipeline_lib.training.batches.examples import build_examples
from pipeline_lib.training.gradients import add_gradients, batch_terms
from pipeline_lib.training.loop import pack_examples
from pipeline_lib.training.open_policy import load_policy
from pipeline_lib.types import PolicyRef
from tasks.runtime.engines import open_policy


def fading_loss(log_probs: torch.Tensor, weights: torch.Tensor, *, num_scored_tokens: int) -> torch.Tensor:
    """``-sum_m (w_m log p_m, or w_m p_m where w_m < 0) / num_scored_tokens``: bounded below, so no clip is needed."""
    return -torch.where(weights < 0, weights * log_probs.exp(), weights * log_probs).sum() / num_scored_tokens


def make_batch(config: PipelineConfig) -> PackedBatch:
    """Eight problems searched, scored and packed as ``train.objective`` reads them, in one forward pass."""
    problems = [make_problem("tiny-word", "train", index) for index in range(8)]
    policy = open_policy(config, PolicyRef(policy_id="tiny", base_model="tiny", iteration=0), problems)
    trees = [search_one(problem, policy, config.search, seed=config.seed) for problem in problems]
    examples = build_examples(trees, [score_tree(tree, config.score) for tree in trees], config.train)
    end = AutoTokenizer.from_pretrained(model_folder("tiny")).eos_token_id
    return pack_rows(pack_examples(examples, config.train, eos_token_id=end), break_even_tokens=700)


def main() -> None:
    """Prints loss and gradient norm of each objective; the rollouts are worked solutions with seeded mistakes."""
    small = apply_overrides(preset("tiny"), ["policy.backend=scripted", "train.negative_clip=1"])
    for name in ("relative-correctness", "rft", "step-dpo", "fading"):
        config = small if name == "fading" else apply_overrides(small, [f"train.objective={name}"])
        batch = make_batch(config)
        trained = load_policy(model_folder("tiny"), None, config.train, config.policy, seed=config.seed)
        if name == "fading":  # ours, on the weights of relative correctness
            log_probs = batch_terms(trained, batch, with_reference=False).log_probs
            weights = torch.from_numpy(batch.weights).to(log_probs)
            loss = fading_loss(log_probs, weights, num_scored_tokens=batch.num_scored_tokens)
            torch.autograd.backward(loss)
        else:
            loss = torch.tensor(add_gradients(trained, [batch], config.train)["loss"])
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained.trainable().values() if p.grad is not None])
        rich.print(f"{name:20}  loss {loss:7.4f}  gradient norm {norm:7.4f}")


if __name__ == "__main__":
    main()
