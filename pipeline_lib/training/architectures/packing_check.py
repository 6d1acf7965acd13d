"""Whether a model can be trained on packed trees, found out on a small random one.

One idea: the judge is the model as transformers runs it, a row for each path, with its plainest attention. How far its
log-probabilities move when every number that enters it is off by one rounding is noise; packed ones may be a few times
as far off and no more. Every part of the way is compared alone, so that a refusal says what is wrong.

Distances are medians over tokens: whatever is computed wrongly is wrong nearly everywhere in so small a tree, while a
router that sends one token to another expert, as happens in bfloat16, is noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.config import ConfigError
from pipeline_lib.config.one_line import first_line
from pipeline_lib.training.architectures.layers import windows_by_kind
from pipeline_lib.training.batches.batching import pack_rows
from pipeline_lib.training.batches.packing import pack_example
from pipeline_lib.training.log_probs import token_terms
from pipeline_lib.training.trained_policy import TrainedPolicy
from pipeline_lib.types import SearchTree, TrainingExample

NOISE_FACTOR = 3.0  # packed ones were 0.5 of the noise off in bfloat16 and 1 in float32, over 12 families, see LOG.md
LEAST_NOISE = {torch.float32: 5e-6, torch.bfloat16: 2e-3}  # nats
SHORT_WINDOW = 4  # a sliding window is narrowed to it, so that the short paths of the probe look past it
BLOCK_SIZES = (8,)  # so that the probe is cut where attention goes by blocks
PROMPT_TOKENS, STEP_TOKENS = 4, 3  # few: with a large model on a CPU a hundred tokens take a while
PARENTS = (-1, 0, 1, 1, 0, 4, 4)  # of the probe's nodes: two steps after the prompt, and two after each of them
PATHS = ((1, 2), (1, 3), (4, 5), (4, 6))
ADVICE = "take a model of full or sliding attention whose output layer is plain, scaled or capped"


def check_packable(trained: TrainedPolicy) -> None:
    """Compares log-probabilities of a random tree, packed, with those of its paths in rows of their own.

    Raises:
        ConfigError: they differ by more than noise; the message says in which part of the way.
    """
    tree = probe_tree(trained.model.get_input_embeddings().num_embeddings)
    paths = _paths(tree).to(trained.device)
    with torch.no_grad(), trained.autocast(), _short_window(trained.layout):
        with _plain_attention(trained.model):
            unpacked, hidden = _of_model(trained.model, paths)
            with _rounded_otherwise(trained):
                noise = _distance(_of_model(trained.model, paths)[0], unpacked)
        limit, by_node = NOISE_FACTOR * max(noise, LEAST_NOISE[trained.dtype]), _by_node(unpacked)
        first = len(PATHS[0]) * STEP_TOKENS  # tokens of the first path; no other branch stands before them
        compare = partial(_compare, type(trained.model).__name__, limit)
        compare(
            "its output layer is not all that makes its logits",
            lambda: _of_logits(trained.head(hidden), paths),
            unpacked,
        )
        compare(
            "its attention is more than masks can say", lambda: _of_packed(trained, tree, PATHS[0]), by_node[:first]
        )
        compare("the branches of a tree see each other", lambda: _of_packed(trained, tree)[first:], by_node[first:])


def _compare(name: str, limit: float, reason: str, compute: Callable[[], Tensor], expected: Tensor) -> None:
    refusal = f"{name} cannot be trained on packed trees: {reason}"
    try:
        distance = _distance(compute(), expected)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{refusal} ({first_line(error)}); {ADVICE}") from error
    if not distance <= limit:
        raise ConfigError(f"{refusal}: {distance:.2g} nats off, of which noise explains {limit:.1g}; {ADVICE}")


def probe_tree(vocabulary: int) -> SearchTree:
    """A tree of random tokens; a path holds 10 of them."""
    rng, size = np.random.default_rng(0), len(PARENTS)
    tokens = rng.integers(2, vocabulary, (size, STEP_TOKENS), dtype=np.int32)
    return SearchTree(
        problem_id="probe",
        policy_id="probe",
        seed=0,
        prompt_token_ids=rng.integers(2, vocabulary, PROMPT_TOKENS, dtype=np.int32),
        parents=np.array(PARENTS, dtype=np.int32),
        steps=("",) * size,
        token_ids=(tokens[0, :0], *tokens[1:]),
        visits=np.ones(size, dtype=np.int32),
        value_sums=np.zeros(size),
        outcomes=np.zeros(size, dtype=np.int8),
        depths=np.array([0, 1, 2, 2, 1, 2, 2], dtype=np.int32),
    )


def _paths(tree: SearchTree) -> Tensor:
    """`[4, 10]` the tokens of each path."""
    tokens = [np.concatenate([tree.prompt_token_ids, *(tree.token_ids[node] for node in path)]) for path in PATHS]
    return torch.from_numpy(np.stack(tokens).astype(np.int64))


def _by_node(of_paths: Tensor) -> Tensor:
    """What of the paths' log-probabilities belongs to each node, node after node, as `_of_packed` has them."""
    parts = []
    for node in range(1, len(PARENTS)):
        row = next(row for row, path in enumerate(PATHS) if node in path)
        start = PROMPT_TOKENS - 1 + STEP_TOKENS * PATHS[row].index(node)  # the first token has none
        parts.append(of_paths[row, start : start + STEP_TOKENS])
    return torch.cat(parts)


def _of_model(model: Any, paths: Tensor) -> tuple[Tensor, Tensor]:
    """What the model itself makes of R paths: log-probabilities of their tokens but the first, and hidden states.

    Shapes: `[R, T - 1]` and `[R, T, H]`.
    """
    hidden: list[Tensor] = []
    decoder = model.get_decoder()
    with _hooked(decoder, lambda _, given, output: hidden.append(output.last_hidden_state)):
        logits = model(input_ids=paths, use_cache=False).logits
    return _of_logits(logits, paths), hidden[0]


def _of_packed(trained: TrainedPolicy, tree: SearchTree, nodes: tuple[int, ...] | None = None) -> Tensor:
    """Log-probabilities of the tokens of some nodes, or of all, as training computes them."""
    weights = np.zeros(tree.num_nodes)
    weights[list(nodes) if nodes else slice(1, None)] = 1
    batch = pack_rows([pack_example(TrainingExample(tree, weights), eos_token_id=0)], break_even_tokens=1)
    hidden = trained.hidden_states(batch, trained.visible(batch, BLOCK_SIZES))
    return token_terms(hidden, trained.head, torch.from_numpy(batch.targets).to(trained.device)).log_probs


def _of_logits(logits: Tensor, paths: Tensor) -> Tensor:
    targets = paths[:, 1:, None]
    return logits[:, : targets.shape[1]].float().log_softmax(-1).gather(-1, targets)[..., 0]


def _distance(found: Tensor, expected: Tensor) -> float:
    """Median over tokens, in nats; not a number where any is not one."""
    return float((found - expected).abs().flatten().float().median())


def _rounded_otherwise(trained: TrainedPolicy) -> contextlib.AbstractContextManager[None]:
    """Every number that the embedding gives is off by one rounding."""
    generator, step = torch.Generator().manual_seed(0), torch.finfo(trained.dtype).eps

    def changed(_: Any, given: Any, output: Tensor) -> Tensor:
        signs = 2 * torch.randint(0, 2, output.shape, generator=generator).to(output.device) - 1
        return (output * (1 + step * signs)).to(output.dtype)

    return _hooked(trained.model.get_input_embeddings(), changed)


@contextlib.contextmanager
def _hooked(module: torch.nn.Module, hook: Callable[[Any, Any, Any], Any]) -> Iterator[None]:
    """Calls a hook after each pass through a module."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """The attention that computes whatever the architecture asks for."""
    used = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(used)


@contextlib.contextmanager
def _short_window(layout: Any) -> Iterator[None]:
    """Narrows sliding windows: of the model's own masks as of those of packed trees."""
    window = layout.sliding_window if any(windows_by_kind(layout).values()) else None
    if window is not None:
        layout.sliding_window = min(window, SHORT_WINDOW)
    try:
        yield
    finally:
        if window is not None:
            layout.sliding_window = window
