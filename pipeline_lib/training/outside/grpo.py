"""GRPO by TRL, in one uninterrupted training with a budget of generated tokens: what a user would pick instead.

One idea: TRL trains, and all that could tilt the comparison is the run's own. Prompts come from its codec as token ids,
answers end by its stop rule and limits, rewards are its grader's, the adapter has the shape, and the first weights, of
iteration 1's. Its tokens are counted as a search's are, and an adapter is written each time an iteration's worth of
them has been sampled.

1. A search cuts off rollouts by ``max_depth`` and ``max_step_tokens`` too; there are no steps here.
2. Sampling is transformers' `generate`, as TRL does it, not the engine that searches.
3. An update is never cut in two: an adapter comes with the update that reaches its budget, up to an update's tokens
   late; the curve says how many there were.
4. Nothing is kept of a killed training, which begins anew: TRL's checkpoints are pickles.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from transformers import PrinterCallback, TrainerCallback

from pipeline_lib.config import ConfigError, PolicyConfig, TrainConfig, Truncated
from pipeline_lib.grading.grader import Grader
from pipeline_lib.policy.codec import TokenizerCodec
from pipeline_lib.policy.devices import resolve_device
from pipeline_lib.policy.protocol import SamplingParams
from pipeline_lib.training.open_policy import load_policy
from pipeline_lib.training.outside.grpo_config import GrpoConfig
from pipeline_lib.training.outside.grpo_rollouts import rewards_of, sample_answers
from pipeline_lib.training.trained_policy import TrainedPolicy
from pipeline_lib.types import Problem

SEEDS = 2**32  # NumPy takes no larger one


class TokenBudget(NamedTuple):
    """How much is generated.

    Args:
        per_iteration: tokens, after which an adapter is written.
        num_iterations: adapters, at least 1.
    """

    per_iteration: int
    num_iterations: int


class Asking(NamedTuple):
    """How problems are asked, and what answers are worth.

    Args:
        codec: makes the prompts, ends and decodes the answers.
        sampling: how answers are drawn.
        grader: nothing else may be in flight on it.
        truncated: what an answer that a limit cut off counts as.
    """

    codec: TokenizerCodec
    sampling: SamplingParams
    grader: Grader
    truncated: Truncated


class GrpoPoint(NamedTuple):
    """What had been done when an adapter was written, counted from the beginning.

    Args:
        tokens: that were generated.
        updates: of the weights.
        trained_tokens: in forward and backward passes, prompts included, padding not.
        reward: mean over the answers since the adapter before.
        seconds: since the training began, loading included.
    """

    tokens: int
    updates: int
    trained_tokens: int
    reward: float
    seconds: float


def train_grpo(
    problems: Sequence[Problem],
    *,
    asking: Asking,
    model_dir: Path | str,
    output_dir: Path,
    budget: TokenBudget,
    config: GrpoConfig,
    train: TrainConfig,
    policy: PolicyConfig,
    seed: int,
    on_update: Callable[[int], None] = lambda tokens: None,
) -> list[GrpoPoint]:
    """Trains, and writes adapter k to ``<output_dir>/k/policy``; returns a point per adapter.

    Args:
        problems: what is asked, in an order that the seed draws, again and again; at least an update's.
        asking: prompts, sampling, grader.
        model_dir: base model folder or hub name.
        output_dir: gets a folder per adapter.
        budget: generated tokens.
        config: GRPO's own settings.
        train: the adapter's shape and gradient checkpointing are read.
        policy: device, dtype, threads, and what the adapters name as their base.
        seed: draws the adapter's first weights, the order and the answers.
        on_update: called after each update with the tokens generated so far.

    Raises:
        ConfigError: too few problems.
        ModuleNotFoundError: TRL is not installed.
    """
    if len(problems) < config.problems_per_update:
        raise ConfigError(
            f"{len(problems)} problems to train on and problems_per_update={config.problems_per_update}: an update "
            "asks so many different ones; raise problems.num_problems or lower it"
        )
    device = resolve_device(policy.device)
    if device.type == "cpu":
        torch.set_num_threads(policy.num_threads)
    base_model = Path(policy.model).name if Path(policy.model).is_absolute() else policy.model
    watch = _Watch(output_dir, budget, base_model, on_update)
    watch.trained = load_policy(model_dir, None, train, policy, seed=seed)
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL calls what we hand it experimental; its version is pinned
        arguments = _arguments(scratch, config, asking.sampling, train, policy, budget, seed % SEEDS)
        trainer = _trainer(watch.trained, arguments, problems, _Sampler(asking, watch))
        trainer.add_callback(watch)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return watch.points


def _arguments(
    scratch: str,
    config: GrpoConfig,
    sampling: SamplingParams,
    train: TrainConfig,
    policy: PolicyConfig,
    budget: TokenBudget,
    seed: int,
) -> Any:
    """TRL's arguments: what is not named has its default; nothing is saved, logged or reported."""
    from trl import GRPOConfig

    on_cpu = resolve_device(policy.device).type == "cpu"
    most_updates = -(-budget.per_iteration * budget.num_iterations // config.rollouts_per_update)  # a token an answer
    return GRPOConfig(
        output_dir=scratch,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=config.pass_size,
        gradient_accumulation_steps=config.rollouts_per_update // config.pass_size,
        num_generations=config.rollouts_per_problem,
        max_completion_length=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p or None,
        beta=config.beta,
        max_steps=most_updates,
        seed=seed,
        bf16=policy.dtype == "bfloat16",
        gradient_checkpointing=train.gradient_checkpointing,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _trainer(trained: TrainedPolicy, arguments: Any, problems: Sequence[Problem], sampler: _Sampler) -> Any:
    """TRL's trainer of the adapter; a row of its data is a question with its gold answer."""
    from datasets import Dataset
    from trl import GRPOTrainer

    rows = {"prompt": [p.question for p in problems], "gold": [p.answer for p in problems]}
    return GRPOTrainer(
        model=trained.adapters,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=sampler.asking.codec.tokenizer,
        reward_funcs=sampler.reward,
        rollout_func=sampler.rollouts,
    )


class _Sampler:
    """What TRL calls for answers, and for what they are worth.

    Args:
        asking: prompts and grader.
        watch: hears of every token.
    """

    def __init__(self, asking: Asking, watch: _Watch) -> None:
        self.asking, self._watch = asking, watch

    def rollouts(self, questions: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Answers to the questions, each of which stands there as often as it is to be answered."""
        from trl.models import unwrap_model_for_generation

        codec = self.asking.codec
        prompts = [codec.encode_prompt(question).tolist() for question in questions]
        with unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            generation_kwargs=trainer.generation_kwargs,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model:
            answers = sample_answers(
                model,
                prompts,
                codec=codec,
                generation=trainer.generation_config,
                end_ids=trainer.eos_token_ids,
                pad_id=codec.tokenizer.pad_token_id,
            )
        self._watch.has_sampled(
            generated=sum(answer.num_sampled for answer in answers),
            trained=sum(len(answer.token_ids) + len(prompt) for answer, prompt in zip(answers, prompts, strict=True)),
        )
        return {
            "prompt_ids": prompts,
            "completion_ids": [answer.token_ids for answer in answers],
            "logprobs": None,
            "answer": answers,
        }

    def reward(self, *, answer: Sequence[Any], gold: Sequence[str], **_: Any) -> list[float | None]:
        """What each answer is worth."""
        rewards = rewards_of(answer, gold, self.asking.grader, self.asking.truncated)
        self._watch.has_graded(rewards)
        return rewards


class _Watch(TrainerCallback):
    """Counts what is generated, writes the adapters, and ends the training with the last one.

    Args:
        output_dir: gets the adapters.
        budget: generated tokens.
        base_model: what the adapters name as their base.
        on_update: called after each update with the tokens generated so far.
    """

    trained: TrainedPolicy

    def __init__(
        self, output_dir: Path, budget: TokenBudget, base_model: str, on_update: Callable[[int], None]
    ) -> None:
        self.points: list[GrpoPoint] = []
        self._output_dir, self._budget, self._base_model, self._on_update = output_dir, budget, base_model, on_update
        self._tokens = self._trained_tokens = 0
        self._rewards: list[float] = []
        self._started = time.perf_counter()

    def has_sampled(self, *, generated: int, trained: int) -> None:
        """Counts the tokens of one update."""
        self._tokens += generated
        self._trained_tokens += trained

    def has_graded(self, rewards: Sequence[float | None]) -> None:
        """Keeps the rewards of one update; None counts as 0."""
        self._rewards += [reward or 0.0 for reward in rewards]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """An update has been taken."""
        reward = sum(self._rewards) / len(self._rewards)
        while not self._is_done and self._tokens >= (len(self.points) + 1) * self._budget.per_iteration:
            self._write(state.global_step, reward)
            self._rewards = []
        self._on_update(self._tokens)
        control.should_training_stop = self._is_done
        return control

    @property
    def _is_done(self) -> bool:
        return len(self.points) == self._budget.num_iterations

    def _write(self, num_updates: int, reward: float) -> None:
        folder = self._output_dir / str(len(self.points) + 1) / "policy"
        self.trained.save(folder, base_model=self._base_model)
        seconds = time.perf_counter() - self._started
        self.points.append(GrpoPoint(self._tokens, num_updates, self._trained_tokens, reward, seconds))
