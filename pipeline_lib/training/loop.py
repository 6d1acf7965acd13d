"""Training for every objective: packs the examples and takes the updates, in this process or in several.

What is trained on is packed here, once; `trainer` takes the updates, alone or as one of several processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline_lib.config import PolicyConfig, TrainConfig
from pipeline_lib.policy.end_tokens import declared_end_ids, trained_end_id
from pipeline_lib.policy.tokenizers import load_tokenizer
from pipeline_lib.training.batches.cutting import cut_tree
from pipeline_lib.training.batches.packing import PackedTree, pack_example
from pipeline_lib.training.processes.job import Job
from pipeline_lib.training.processes.launch import check_processes, take_updates_in_processes
from pipeline_lib.training.result import TrainResult, summarise
from pipeline_lib.training.trainer import OnUpdate, take_updates
from pipeline_lib.types import TrainingExample


def train(
    examples: Sequence[TrainingExample],
    *,
    model_dir: Path | str,
    previous_adapter: Path | None,
    output_dir: Path,
    checkpoint_dir: Path,
    config: TrainConfig,
    policy: PolicyConfig,
    seed: int,
    eos_token_id: int | None = None,
    on_update: OnUpdate | None = None,
) -> TrainResult:
    """Trains the next policy on the examples and writes it to `output_dir`.

    Killed and called again with the same arguments it goes on from the last checkpoint, and on the same machine writes
    the same bytes as an uninterrupted run of as many processes.

    Args:
        examples: see `build_examples`; at least one.
        model_dir: base model folder or hub name.
        previous_adapter: the previous iteration's output, where training starts and what the KL is
            against; None takes the base for both.
        output_dir: a PEFT adapter, or a model folder with full fine-tuning.
        checkpoint_dir: holds the checkpoints of this run alone.
        config: objective, optimizer, limits, processes.
        policy: device, dtype and threads.
        seed: draws the order of examples and the adapter's first weights.
        eos_token_id: scored where a tree does not say which token ended an answer; None asks the model in
            `model_dir`, see `trained_end_id`.
        on_update: called with each update's metrics, after its checkpoint.

    Raises:
        ValueError: nothing to train on, a previous adapter or checkpoint that does not fit, or a model
            that cannot be trained on packed trees.
        FloatingPointError: a gradient is not finite.
        ConfigError: processes or sharding that this machine cannot give.
        TrainingProcessError: one of several processes died.
    """
    check_processes(config, policy)
    if eos_token_id is None:
        declared = declared_end_ids(model_dir, policy.revision if isinstance(model_dir, str) else None)
        eos_token_id = trained_end_id(declared, load_tokenizer(model_dir, policy))
    trees = pack_examples(examples, config, eos_token_id=eos_token_id)
    job = Job(model_dir, previous_adapter, output_dir, checkpoint_dir, config, policy, seed)
    take = take_updates if config.num_processes == 1 else take_updates_in_processes
    history = take(job, trees, on_update)
    return summarise(history, kl_alarm=config.kl_alarm)


def pack_examples(examples: Sequence[TrainingExample], config: TrainConfig, *, eos_token_id: int) -> list[PackedTree]:
    """All packed trees with something to score; one that is larger than an update is cut.

    Raises:
        ValueError: there is none.
    """
    whole = [pack_example(one, eos_token_id=eos_token_id, kl_on_path=config.kl_on_path) for one in examples]
    trees = [part for tree in whole if tree.num_scored_tokens for part in cut_tree(tree, config.tokens_per_update)]
    if not trees:
        raise ValueError("no step to train on: every weight is 0; search more simulations or raise train.negative_clip")
    return trees
