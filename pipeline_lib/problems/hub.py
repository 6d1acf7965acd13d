"""Datasets from the hub, or from its cache here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline_lib.problems.rows import ProblemsError, Row
from pipeline_lib.problems.splits import VALIDATION_NAMES

HUB = {("gsm8k", "train"): "openai/gsm8k:main", ("gsm8k", "test"): "openai/gsm8k:main"}
HUB[("math", "test")] = "HuggingFaceH4/MATH-500"
HUB_PATIENCE_S = 10.0


def load_hub(name: str, split: str) -> Mapping[str, Any]:
    """The splits of a hub dataset by name, rows by column each; one called ``valid`` or ``dev`` is ``validation``.

    Args:
        name: ``owner/name`` or ``owner/name:config``.
        split: the one that is wanted.

    Raises:
        ProblemsError: it cannot be had, or has no such split.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
        raise ProblemsError(f"hub:{name}: expected hub:owner/name or hub:owner/name:config")
    repository, _, config = name.partition(":")
    import datasets

    try:
        with _cache_alone_unless_reached(repository):
            splits: Any = datasets.load_dataset(repository, config or None, revision=hub_commit(name))
    except Exception as error:
        # The hub client has no common base class for "no network", "no such dataset" and "no access".
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        advice = "go online, or set problems.path to a local copy"
        raise ProblemsError(f"cannot load {repository} ({split}) from the hub: {reason}; {advice}") from None
    found = dict(splits)
    if own := next((other for other in VALIDATION_NAMES if other in splits), None):
        found["validation"] = splits[own]
    if split not in found:
        raise ProblemsError(f"hub:{name} has no split {split}, only {', '.join(splits)}; name another dataset")
    return found


def hub_name(dataset: str, split: str, path: str | None) -> str | None:
    """What `load_hub` is asked for a split; None where it lies in files here, or nowhere."""
    if path is None:
        return HUB.get((dataset, split))
    return path.removeprefix("hub:") if path.startswith("hub:") else None


def hub_commit(name: str) -> str | None:
    """The commit at which `load_hub` reads a dataset: the hub's newest, or, while it is away, the newest in its cache.

    It is asked once per process, so that a dataset that moves on does not part a run in two.

    Args:
        name: see `load_hub`.

    Returns:
        None where neither knows the dataset.
    """
    import datasets

    try:
        return _commit(name.partition(":")[0], str(datasets.config.HF_DATASETS_CACHE))
    except LookupError:
        return None


@lru_cache(maxsize=64)
def _commit(repository: str, cache: str) -> str:
    """The same; raises LookupError rather than keep in mind that there is none."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # as in `load_hub`, which says what is wrong where the cache does not have it
        newest = HfApi().dataset_info(repository, timeout=HUB_PATIENCE_S).sha
        if newest is not None:
            return newest
    # As `datasets` keeps them: OWNER___NAME/CONFIG/VERSION/COMMIT, of which it takes the one changed last.
    kept = [path for path in Path(cache).glob(f"{repository.replace('/', '___')}/*/*/*") if path.is_dir()]
    if not kept:
        raise LookupError(repository)
    return max(kept, key=lambda path: path.stat().st_mtime).name


def hub_rows(name: str, splits: Mapping[str, Any], split: str) -> Iterator[Row]:
    """The rows of one split, each with its number."""
    for number, values in enumerate(splits[split], start=1):
        yield Row(f"{name.partition(':')[0]} ({split})", number, values)


@contextmanager
def _cache_alone_unless_reached(repository: str) -> Iterator[None]:
    """One question to the hub; without an answer, what is in the cache has to do: else `datasets` asks for 23 s."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    before = datasets.config.HF_HUB_OFFLINE
    try:
        HfApi().dataset_info(repository, timeout=HUB_PATIENCE_S)
    except HfHubHTTPError:  # it has answered; why not with the dataset, the next question will tell
        pass
    except Exception:  # of the HTTP client, which is the hub client's own choice
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
